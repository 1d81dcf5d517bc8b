"""Tables: rows of text, and Markdown made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..networks.display import html_table, text_table
from ..training.levels import Level
from .records import History, Record, read_history

if TYPE_CHECKING:
    from ..connectivity.barrier import Barrier

# Columns for the records of a Trainer, and the metrics that fill them: the first that a record has.
_TRAINER_COLUMNS = {
    "accuracy": ("eval_accuracy",),
    "loss": ("eval_loss", "train_loss"),
    "sign flips": ("sign_flips",),
}


class Table(NamedTuple):
    """A header, and rows of as many cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __repr__(self) -> str:
        if any(len(row) != len(self.header) for row in self.rows):
            return f"Table({list(self.header)}, {len(self.rows)} rows, some of other lengths than the header)"
        return text_table(self.header, self.rows, limit=20)

    def _repr_html_(self) -> str:
        return html_table(self.header, self.rows, limit=50)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns; without rows, an empty string."""
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in [list(header), *rows]) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *rows]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def level_rows(history: History) -> Table:
    """Make a table of the levels of a search.

    Args:
        history: The levels of ``find_ticket``, with a column for every metric that is a number; or the records of
            ``trainer.history``, with columns for accuracy, loss and sign flips.
    """
    levels = list(history)
    records = read_history(levels)
    columns = _TRAINER_COLUMNS
    if levels and isinstance(levels[0], Level):
        columns = {name: (name,) for record in records for name in record.metrics}
    rows = []
    for record in records:
        level = f"{record.level} (final run)" if record.final_run else str(record.level)
        rows.append([level, f"{record.sparsity:.2%}", *(_cell(record, names) for names in columns.values())])
    return Table(["level", "sparsity", *columns], rows)


def level_table(history: History) -> str:
    """Make a Markdown table of the levels of a search.

    Args:
        history: As for :func:`level_rows`.

    Example:
        >>> print(level_table([{"level": 0, "sparsity": 0.0, "metrics": {"eval_accuracy": 0.5}}]))
        | level | sparsity | accuracy | loss | sign flips |
        | ----- | -------- | -------- | ---- | ---------- |
        | 0     | 0.00%    | 0.5000   | -    | -          |
    """
    return markdown_table(*level_rows(history))


def number_text(value: float | None) -> str:
    """Write a number for a table: four decimals, but never a zero that is not one; a dash for None.

    Example:
        >>> [number_text(value) for value in (0.97512, 0.00003, 0.0, None)]
        ['0.9751', '3e-05', '0', '-']
    """
    if value is None:
        return "-"
    if value == 0:
        return "0"
    return f"{value:.2g}" if abs(value) < 0.001 else f"{value:.4f}"


def barrier_rows(barriers: Mapping[str, Barrier]) -> Table:
    """Make a table of barriers: the errors at the two ends, the largest error, and the barrier.

    Args:
        barriers: Label -> what ``error_barrier`` returned.
    """
    rows = []
    for label, found in barriers.items():
        numbers = (found.errors[0], found.errors[-1], max(found.errors), found.barrier)
        rows.append([label, *map(number_text, numbers)])
    return Table(["networks", "first", "second", "largest", "barrier"], rows)


def _cell(record: Record, names: Iterable[str]) -> str:
    """The first of some metrics that a record has."""
    return next((number_text(record.metrics[name]) for name in names if name in record.metrics), "-")
