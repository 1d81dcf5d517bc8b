"""Tables: rows of text, and Markdown made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
    """A header, and rows of as many cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; an empty string without rows."""
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in [list(header), *rows]) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *rows]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def level_rows(history: Sequence[Mapping[str, Any]]) -> Table:
    """The levels of a search as a table.

    Args:
        history: One mapping a level with ``level``, ``sparsity`` and ``metrics`` (accuracy and loss under their
            Trainer names and ``sign_flips``, as far as there are any).
    """
    rows = []
    for record in history:
        metrics = record["metrics"]
        measures = [
            metrics.get("eval_accuracy"),
            metrics.get("eval_loss", metrics.get("train_loss")),
            metrics.get("sign_flips"),
        ]
        numbers = ["-" if value is None else f"{value:.4f}" for value in measures]
        level = f"{record['level']} (final run)" if record.get("final_run") else str(record["level"])
        rows.append([level, f"{record['sparsity']:.4f}", *numbers])
    return Table(["level", "sparsity", "accuracy", "loss", "sign flips"], rows)


def level_table(history: Sequence[Mapping[str, Any]]) -> str:
    """The levels of a search as a Markdown table.

    Args:
        history: One mapping a level with ``level``, ``sparsity`` and ``metrics`` (accuracy and loss under their
            Trainer names and ``sign_flips``, as far as there are any).
    """
    return markdown_table(*level_rows(history))
