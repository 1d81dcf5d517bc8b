"""Display: small tables, as plain text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, ClassVar, TypeVar

Value = TypeVar("Value")
SHOWN_ROWS = 50  # of a table in a notebook
_NUMBER = re.compile(r"[-+]?([\d,]*\.?\d+(e[-+]?\d+)?|inf|nan)?\s?%?", re.IGNORECASE)
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def text_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, limit: int | None = None) -> str:
    """Return a table as aligned plain text; columns of numbers are aligned on the right.

    Args:
        header: Names of the columns.
        rows: The rows, of as many cells as the header. Cells are converted with ``str``.
        limit: The most rows to show. A last line tells how many were left out. By default all rows are shown.

    Raises:
        ValueError: A row has more or fewer cells than the header.

    Example:
        >>> print(text_table(["layer", "kept"], [["conv", 1200], ["fc", 30], ["out", 4]], limit=2))
        layer  kept
        conv   1200
        fc       30
        ... and 1 more
    """
    shown, more = _shown(header, rows, limit)
    lines = [[str(cell) for cell in header], *shown]
    columns = [_aligned(column) for column in zip(*lines, strict=True)]
    text = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return "\n".join([*text, f"... and {more:,} more"] if more else text)


def html_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, limit: int | None = None) -> str:
    """Return a table as HTML, for ``_repr_html_``. All text is escaped.

    Args:
        header: Names of the columns.
        rows: The rows, of as many cells as the header. Cells are converted with ``str``.
        limit: The most rows to show. A line below tells how many were left out. By default all rows are shown.

    Raises:
        ValueError: A row has more or fewer cells than the header.

    Example:
        >>> print(html_table(["a"], [["<b>"]]))
        <table>
        <thead><tr><th scope="col">a</th></tr></thead>
        <tbody>
        <tr><td>&lt;b&gt;</td></tr>
        </tbody>
        </table>
    """
    shown, more = _shown(header, rows, limit)
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = [f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in shown]
    lines = ["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>", *body, "</tbody>", "</table>"]
    return "\n".join([*lines, f"<p>... and {more:,} more</p>"] if more else lines)


class TableDict(dict[str, Value]):
    """A dict that prints as a table with one row for each entry. Subclasses define the header and the rows.

    Attributes:
        header: Names of the columns.
    """

    header: ClassVar[tuple[str, ...]] = ("name", "value")

    def row(self, name: str, value: Value) -> Sequence[str]:
        """Return the cells of one entry."""
        return name, str(value)

    @property
    def rows(self) -> list[Sequence[str]]:
        """The rows of the table."""
        return [self.row(name, value) for name, value in self.items()]

    def __repr__(self) -> str:
        return text_table(self.header, self.rows, limit=20)

    def _repr_html_(self) -> str:
        return html_table(self.header, self.rows, limit=SHOWN_ROWS)


def first_names(names: Sequence[str], *, limit: int = 5) -> str:
    """Return the first names of a list, separated by commas, and how many more there are; "none" for an empty list.

    Example:
        >>> first_names(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "none"


def escaped(text: object) -> str:
    """Return text that is safe between HTML tags and in quoted attributes.

    Characters that HTML forbids are replaced by U+FFFD.
    """
    return html.escape(_FORBIDDEN.sub("\ufffd", str(text)))


def _shown(header: Sequence[str], rows: Iterable[Sequence[Any]], limit: int | None) -> tuple[list[list[str]], int]:
    """The rows to show as text, and how many are left out."""
    rest = iter(rows)
    shown = [[str(cell) for cell in row] for row in islice(rest, limit)]
    for row in shown:
        if len(row) != len(header):
            raise ValueError(f"a row must have {len(header)} cells, as the header has; received {len(row)}.")
    return shown, sum(1 for _ in rest)


def _aligned(column: Sequence[str]) -> list[str]:
    """The cells of a column, padded to one width."""
    width = max(map(len, column))
    numbers = len(column) > 1 and all(_NUMBER.fullmatch(cell) for cell in column[1:])
    return [cell.rjust(width) if numbers else cell.ljust(width) for cell in column]
