"""Tables and pictures of ladders, from their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...report import Picture, Section, Table
from ...report.style import curve_style, picture, write_csv
from ..commands.common import mean_and_std

Results = Mapping[str, Any]  # of one ladder, as `ladder_results.write_results` gives them
HEADER = (
    "row", "", "minus naive, 95 %", "gap closed (95 %)", "barrier", "overlap (chance)", "correlation", "kept signs",
    "{} s", "with what it needs",
)  # fmt: skip
_DECIMALS = {"barrier": 2, "correlation": 2, "kept_signs": 3}
# What ladders can be compared in.
COMPARED = ("measure", "minus_naive", "gap_closed", "barrier", "correlation", "overlap", "kept_signs")


def table(results: Results) -> Table:
    """Every number of one ladder."""
    seconds = ("seconds", "with_needs") if results["seconds"] == "GPU" else ("cpu_seconds", "cpu_with_needs")
    columns = ("measure", "minus_naive", "gap_closed", "barrier", "overlap", "correlation", "kept_signs", *seconds)
    header = [results["measure"] if name == "" else name.format(results["seconds"]) for name in HEADER]
    return Table(header, [[row, *(cell(results, row, name) for name in columns)] for row in results["rows"]])


def cell(results: Results, row: str, name: str) -> str:
    """A number of a row as text; a dash where there is none."""
    found = results["rows"].get(row)
    if found is None or (row == "naive" and name in ("minus_naive", "gap_closed")):
        return "-"
    if name == "measure":
        return mean_and_std(np.array(found["values"]), _digits(results))
    value = found[name]
    if value is None:
        return "-"
    if name == "minus_naive":
        return f"{value:+.{_digits(results)}f} ± {found['half_width']:.{_digits(results)}f}"
    if name == "gap_closed":
        share, low, high = (round(100 * end) for end in value)
        return f"{share} %" if low == high else f"{share} % ({low} to {high})"  # that of lth is 100 % by definition
    if name == "overlap":
        return f"{value:.3f} ({found['chance']:.3f})"
    return f"{value:.{_DECIMALS.get(name, 0)}f}"


def _digits(results: Results) -> int:
    return 3 if results["measure"] == "loss" else 2


def comparison(ladders: Sequence[Results], name: str, rows: Sequence[str] | None = None) -> Table:
    """One number of several ladders side by side.

    Args:
        ladders: Results of the ladders.
        name: Which number, of :data:`COMPARED`.
        rows: Which rows. Default: all.
    """
    rows = list(rows or dict.fromkeys(row for results in ladders for row in results["rows"]))
    lines = [[row, *(cell(results, row, name) for results in ladders)] for row in rows]
    return Table([name.replace("_", " "), *map(label, ladders)], [line for line in lines if set(line[1:]) != {"-"}])


def label(results: Results) -> str:
    """The name of a ladder, with its place in a sweep."""
    return ", ".join(filter(None, [results["title"], results["about"]["point"]]))


def plot(path: Path, ladders: Sequence[Results], rows: Sequence[str] | None = None) -> None:
    """The paired differences to naive with their 95 % intervals, for one ladder or several."""
    drawn = rows or list(dict.fromkeys(row for results in ladders for row in results["rows"]))
    rows = [row for row in reversed(drawn) if row != "naive"]
    numbers = []
    with picture(path, 7, 0.8 + 0.3 * len(rows) * max(1, 0.5 * len(ladders))) as axes:
        axes.axvline(0, color="grey", linewidth=0.8)
        for i, results in enumerate(ladders):
            points = [
                (j + 0.7 * (0.5 - (i + 0.5) / len(ladders)), row, results["rows"][row])
                for j, row in enumerate(rows)
                if row in results["rows"]
            ]
            style = {**curve_style(i), "linestyle": "none", "capsize": 3, "label": label(results)}
            means, halves = ([found[key] for *_, found in points] for key in ("minus_naive", "half_width"))
            axes.errorbar(means, [place for place, *_ in points], xerr=halves, **style)
            numbers += [(label(results), row, found["minus_naive"], found["half_width"]) for _, row, found in points]
        axes.set_yticks(range(len(rows)), rows)
        measure = ladders[0]["measure"]
        axes.set_xlabel(f"{measure} minus naive{', points' if measure == 'accuracy' else ''}")
        axes.legend(loc="best", fontsize="small")
    write_csv(path, ["ladder", "row", "minus_naive", "half_width"], numbers)


def sections(ladders: Sequence[Results], folder: Path) -> list[Section]:
    """A page of ladders; the picture is written to ``folder``."""
    plot(folder / "ladder.png", ladders)
    caption = "Difference to the mask as it was found, paired by target; bars are 95 % intervals."
    found = [Section(label(results), obtained(results), table(results)) for results in ladders]
    if len(ladders) > 1:
        compared = {name: comparison(ladders, name) for name in COMPARED[:3]}
        found += [Section(f"Compared: {name.replace('_', ' ')}", "", t) for name, t in compared.items() if t.rows]
    return [*found, Section("Picture", caption, None, Picture(folder / "ladder.png", caption))]


def obtained(results: Results) -> str:
    """How the numbers of a ladder were obtained."""
    about, sparsity = results["about"], results["rows"]["naive"]["sparsity"]
    return (
        f"{len(results['seeds'])} seeds, {100 * sparsity:.1f} % sparse. {about['command']} at {about['commit']} on "
        f"{about['device']}, {about['date']}; torch {about['torch']}, transformers {about['transformers']}."
    )
