"""Page: one HTML file that contains everything it shows. It opens offline and loads nothing from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..networks.display import TableDict, escaped, html_table
from ..storage.atomic import write_atomically
from .style import Picture
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
img { max-width: min(100%, 44rem); height: auto; background: #ffffff; border-radius: 4px; }
@media (prefers-color-scheme: dark) { img { filter: brightness(0.88); } }
@media (max-width: 40rem) { body { padding: 0.75rem; } h1 { font-size: 1.5rem; } th, td { padding: 0.25rem 0.4rem; } }
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


@dataclass(frozen=True)
class Section:
    """A part of the page. All text is shown literally, even if it contains markup.

    Attributes:
        title: The heading, also in the table of contents.
        text: Paragraphs, with empty lines between them.
        table: A table, such as :func:`level_rows` or :func:`barrier_rows` makes; or what the functions
            ``overlap_by_...`` and :func:`empty_rows` return; or None.
        picture: A picture, as the functions ``plot_...`` return it; or None. If a CSV of the same stem lies beside it,
            the page links to it.
    """

    title: str
    text: str = ""
    table: Table | TableDict[Any] | None = None
    picture: Picture | None = None

    def __repr__(self) -> str:
        parts = [f"text of {len(self.text.split())} words"] if self.text else []
        if self.table is not None:
            parts.append(f"table of {len(self.table.rows)} rows")
        if self.picture is not None:
            parts.append(f"picture {Path(self.picture.path).name}")
        return f"Section({', '.join([repr(self.title), *parts])})"


def write_report(path: str | Path, sections: Sequence[Section], *, title: str = "Report") -> None:
    """Write one self-contained HTML page, with its pictures and style inside and without scripts.

    Args:
        path: The file to write. The pictures must lie in its folder, or below.
        sections: The parts of the page, in order.
        title: Title of the page.

    Raises:
        ValueError: There are no sections, a row has more or fewer cells than the header, or a picture lies elsewhere.
        FileNotFoundError: A picture is missing.
    """
    if not sections:
        raise ValueError("a report must have at least one section; received none.")
    folder = Path(path).resolve().parent
    contents = (f'<li><a href="#section-{i}">{escaped(part.title)}</a></li>' for i, part in enumerate(sections, 1))
    page = _PAGE.format(
        title=escaped(title),
        style=_STYLE,
        contents="\n".join(contents),
        sections="\n".join(_section(i, part, folder) for i, part in enumerate(sections, 1)),
    )
    write_atomically(path, page.encode())


def _section(number: int, part: Section, folder: Path) -> str:
    lines = [f'<section id="section-{number}" aria-labelledby="title-{number}">']
    lines.append(f'<h2 id="title-{number}">{escaped(part.title)}</h2>')
    lines += [f"<p>{escaped(paragraph)}</p>" for paragraph in re.split(r"\n\s*\n", part.text) if paragraph.strip()]
    if part.table is not None:
        lines += _table(part.table, f"title-{number}")
    if part.picture is not None:
        lines += _figure(part.picture, folder)
    return "\n".join([*lines, "</section>"])


def _table(table: Table | TableDict[Any], label: str) -> list[str]:
    start = f'<div class="wide" role="region" aria-labelledby="{label}" tabindex="0">'
    rows = [[str(cell).replace(" ± ", "\u00a0±\u00a0") for cell in row] for row in table.rows]
    return [start, html_table(table.header, rows), "</div>"]


def _figure(picture: Picture, folder: Path) -> list[str]:
    file = Path(picture.path).resolve()
    if not file.is_relative_to(folder):
        raise ValueError(f"a picture must lie in the folder of the page, {folder}, or below; received {file}.")
    data = base64.b64encode(file.read_bytes()).decode()
    lines = ["<figure>", f'<img src="data:image/png;base64,{data}" alt="{escaped(picture.alt)}">']
    if (numbers := file.with_suffix(".csv")).exists():
        link = quote(numbers.relative_to(folder).as_posix())
        lines.append(f'<figcaption><a href="{link}">Numbers (CSV)</a></figcaption>')
    return [*lines, "</figure>"]
