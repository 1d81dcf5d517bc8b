"""The info of a ticket: what the library reads of it, and its checks. It is read without the Hugging Face libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS: dict[str, Any] = {
    "architecture": str, "defined_in": str, "level": int, "settings": dict, "base_model": str | dict, "parents": list,
    "permutation": dict, "history": list, "comparison": dict, "about": dict,
}  # fmt: skip


def check_info(info: Any) -> None:
    """Check the keys of a ticket's info that the library reads.

    Raises:
        ValueError: One has another type.
    """
    if not isinstance(info, dict):
        raise ValueError(f"the info of a ticket must be a dict; received {info!r:.80}.")
    for key, kind in _KINDS.items():
        if not isinstance(info.get(key), kind | None) or isinstance(info.get(key), bool):
            wanted = getattr(kind, "__name__", kind)
            raise ValueError(f"{key} in the info of a ticket must be of type {wanted}; received {info[key]!r:.80}.")
    if not isinstance(base_id(info), str | None):
        raise ValueError(
            f"base_model in the info of a ticket must have a text as its id; received {info['base_model']!r:.80}."
        )
    if info.get("comparison") and not _is_table(info["comparison"]):
        raise ValueError(
            "comparison in the info of a ticket must have a header, rows of as many texts, and a text; "
            f"received {info['comparison']!r:.80}."
        )
    _check_about(info.get("about") or {})
    for record in info.get("history") or []:
        if not _is_level(record):
            raise ValueError(
                "history in the info of a ticket must have records of level, sparsity and metrics; "
                f"received {record!r:.80}."
            )


def base_id(info: Mapping[str, Any]) -> str | None:
    """Return the base model that a ticket's info names, if any."""
    base = info.get("base_model") or None
    return base.get("id") if isinstance(base, Mapping) else base


def _is_table(found: dict[str, Any]) -> bool:
    lines = [found.get("header"), *rows] if isinstance(rows := found.get("rows"), list) else [None]
    texts = all(isinstance(line, list) and all(isinstance(cell, str) for cell in line) for line in lines)
    return texts and len({len(line) for line in lines if line is not None}) == 1 and isinstance(found.get("text"), str)


def _check_about(about: dict[str, Any]) -> None:
    for key, kind in {"command": list, "changed": list, "versions": dict, "date": str, "hardware": str}.items():
        if not isinstance(about.get(key), kind | None):
            raise ValueError(
                f"{key} in about of a ticket's info must be of type {kind.__name__}; received {about[key]!r:.80}."
            )


def _is_level(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("metrics"), dict):
        return False
    sparsity, accuracy = record.get("sparsity"), record["metrics"].get("eval_accuracy")
    return (
        type(record.get("level")) is int
        and isinstance(sparsity, int | float)
        and 0 <= sparsity <= 1
        and isinstance(accuracy, int | float | None)
    )
