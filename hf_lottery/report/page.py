"""Page: one HTML file with everything in it, that opens offline and asks nobody for anything."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..storage.atomic import write_atomically
from .tables import Table

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --line: #c8c8c8; --link: #005a9c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --line: #4a4d55; --link: #7cc0ff; } }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
a { color: var(--link); }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.75rem; text-align: left; vertical-align: top; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
""".strip()

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
<h1>{title}</h1>
<nav aria-label="Contents">
<ul>
{contents}
</ul>
</nav>
<main>
{sections}
</main>
</body>
</html>
"""


class Picture(NamedTuple):
    """A PNG, and what it shows for those who cannot see it."""

    path: str | Path
    alt: str


@dataclass(frozen=True)
class Section:
    """A part of the page. All text is shown as it is, whatever markup it may hold.

    Attributes:
        title: The heading, also in the table of contents.
        text: Paragraphs, with empty lines between them.
        table: A table, or None.
        picture: A picture, or None; if a CSV of the same stem lies beside it, the page links to it.
    """

    title: str
    text: str = ""
    table: Table | None = None
    picture: Picture | None = None


def write_report(path: str | Path, sections: Sequence[Section], *, title: str = "Report") -> None:
    """Write one self-contained HTML page: pictures and style lie in it, and it has no script.

    Args:
        path: The file to write. The pictures must lie in its folder, or below.
        sections: What it shows, in order.
        title: Title of the page.

    Raises:
        ValueError: There are no sections, a row has not as many cells as the header, or a picture lies elsewhere.
        FileNotFoundError: A picture is missing.
    """
    if not sections:
        raise ValueError("a report must have at least one section; received none.")
    folder = Path(path).resolve().parent
    contents = (f'<li><a href="#section-{i}">{_text(part.title)}</a></li>' for i, part in enumerate(sections, 1))
    page = _PAGE.format(
        title=_text(title),
        style=_STYLE,
        contents="\n".join(contents),
        sections="\n".join(_section(i, part, folder) for i, part in enumerate(sections, 1)),
    )
    write_atomically(path, page.encode())


def _section(number: int, part: Section, folder: Path) -> str:
    lines = [f'<section id="section-{number}" aria-labelledby="title-{number}">']
    lines.append(f'<h2 id="title-{number}">{_text(part.title)}</h2>')
    lines += [f"<p>{_text(paragraph)}</p>" for paragraph in re.split(r"\n\s*\n", part.text) if paragraph.strip()]
    if part.table is not None:
        lines += _table(part.table, f"title-{number}")
    if part.picture is not None:
        lines += _figure(part.picture, folder)
    return "\n".join([*lines, "</section>"])


def _table(table: Table, label: str) -> list[str]:
    if wrong := [row for row in table.rows if len(row) != len(table.header)]:
        raise ValueError(f"a row must have {len(table.header)} cells, as the header has; received {len(wrong[0])}.")
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.header)
    rows = ("".join(f"<td>{_text(cell)}</td>" for cell in row) for row in table.rows)
    body = [f"<tr>{row}</tr>" for row in rows]
    start = f'<div class="wide" role="region" aria-labelledby="{label}" tabindex="0"><table>'
    return [start, f"<thead><tr>{head}</tr></thead>", "<tbody>", *body, "</tbody>", "</table></div>"]


def _figure(picture: Picture, folder: Path) -> list[str]:
    file = Path(picture.path).resolve()
    if not file.is_relative_to(folder):
        raise ValueError(f"a picture must lie in the folder of the page, {folder}, or below; received {file}.")
    data = base64.b64encode(file.read_bytes()).decode()
    lines = ["<figure>", f'<img src="data:image/png;base64,{data}" alt="{_text(picture.alt)}">']
    if (numbers := file.with_suffix(".csv")).exists():
        link = quote(numbers.relative_to(folder).as_posix())
        lines.append(f'<figcaption><a href="{link}">Numbers (CSV)</a></figcaption>')
    return [*lines, "</figure>"]


def _text(text: str) -> str:
    """Text that is safe between tags and in quoted attributes; characters that HTML forbids are replaced."""
    return html.escape(re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", str(text)))
