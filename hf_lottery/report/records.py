"""Records: what tables and pictures read from the levels of a search, whoever ran the search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, SupportsFloat

from ..training.levels import Level

History = Iterable[Level | Mapping[str, Any]]
"""The levels of ``find_ticket``, or the records of ``LotteryTrainer.history``."""


class Record(NamedTuple):
    """One level of a search.

    Attributes:
        level: Number of the level; 0 is dense.
        sparsity: Fraction removed, in [0, 1].
        metrics: The metrics that are numbers, by name. A metric that is one bare number is called ``metric``.
        final_run: Whether the record is that of the final run after the last level.
    """

    level: int
    sparsity: float
    metrics: dict[str, float]
    final_run: bool = False


def read_history(history: History) -> list[Record]:
    """Read the levels of a search.

    Args:
        history: Levels as ``find_ticket`` yields them, or mappings with ``level``, ``sparsity`` and ``metrics``.
    """
    return [_record(level) for level in history]


def metric_by_level(history: History, name: str) -> list[tuple[Record, float]]:
    """Read one metric of a search, at every level that has it.

    Args:
        history: As for :func:`read_history`.
        name: Name of the metric; ``accuracy`` also finds ``eval_accuracy``. A metric that is one bare number has any
            name.

    Raises:
        ValueError: No level has the metric.
    """
    found = []
    records = read_history(history)
    for record in records:
        if (value := metric_of(record.metrics, name)) is not None:
            found.append((record, value))
    if not found:
        names = ", ".join(dict.fromkeys(key for record in records for key in record.metrics)) or "no metrics"
        raise ValueError(f"a level must have the metric {name!r}; received levels with {names}.")
    return found


def metric_of(metrics: Any, name: str) -> float | None:
    """Read one metric: a number has any name; in a mapping, ``accuracy`` also finds ``eval_accuracy``."""
    numbers = numbers_of(metrics)
    default = numbers.get("metric") if len(numbers) == 1 else None
    return numbers.get(name, numbers.get(f"eval_{name}", default))


def numbers_of(metrics: Any) -> dict[str, float]:
    """The metrics that are numbers, by name."""
    named = metrics if isinstance(metrics, Mapping) else {"metric": metrics}
    return {str(name): float(value) for name, value in named.items() if _is_number(value)}


def _record(level: Level | Mapping[str, Any]) -> Record:
    if isinstance(level, Level):
        return Record(level.number, level.sparsity, numbers_of(level.metrics))
    return Record(level["level"], level["sparsity"], numbers_of(level.get("metrics", {})), bool(level.get("final_run")))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | str) or not isinstance(value, SupportsFloat):
        return False
    return getattr(value, "numel", lambda: 1)() == 1
