"""Tables of ladders, from their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...report import Table
from .paired import interval, mean_and_std, split_pair

Results = Mapping[str, Any]  # what `results.write_results` returns for one ladder
# Name of a number -> heading of its column. What no row has gets no column.
_COLUMNS = {
    "measure": "", "minus_naive": "minus naive, 95 %", "gap_closed": "gap closed (95 %)", "barrier": "barrier",
    "dense_barrier": "dense barrier", "overlap": "overlap (chance)", "correlation": "correlation",
    "kept_signs": "kept signs", "initial_norms": "initial norms",
}  # fmt: skip
_OPTIONAL = ("initial_norms", "minus_naive", "gap_closed", "dense_barrier", "overlap", "correlation", "kept_signs")
_REMOVED = {"unit_sparsity": "of units cut", "sparsity": "sparse"}
_DECIMALS = {
    "match_seconds": 1,
    "barrier": 2,
    "dense_barrier": 2,
    "correlation": 2,
    "kept_signs": 3,
    "initial_norms": 2,
}
# The numbers in which several ladders can be compared.
COMPARED = (
    "pairs",
    "measure",
    "minus_naive",
    "gap_closed",
    "barrier",
    "dense_barrier",
    "correlation",
    "overlap",
    "kept_signs",
    "match_seconds",
)


def ladder_table(results: Results) -> Table:
    """Make a table of every number of one ladder.

    Args:
        results: The results of the ladder.
    """
    seconds = ("seconds", "with_needs") if results["seconds"] == "GPU" else ("cpu_seconds", "cpu_with_needs")
    rows = results["rows"]
    columns = [
        name for name in _COLUMNS if name not in _OPTIONAL or any(row.get(name) is not None for row in rows.values())
    ]
    named = [_COLUMNS[name] or results["measure"] for name in columns]
    header = ["row", *named, f"{results['seconds']} s", "with what it needs"]
    return Table(header, [[row, *(number_text(results, row, name) for name in (*columns, *seconds))] for row in rows])


def number_text(results: Results, row: str, name: str) -> str:
    """Write a number of a row as text; a dash where there is none.

    Args:
        results: The results of the ladder.
        row: The row.
        name: The number, such as those of :data:`COMPARED`.
    """
    found = results["rows"].get(row)
    if found is None or (row == "naive" and name in ("minus_naive", "gap_closed")):
        return "-"
    if name == "measure":
        return mean_and_std(np.array(found["values"]), digits=_digits(results))
    value = found.get(name)
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


def difference_table(results: Results, pairs: Sequence[str] | None = None) -> Table:
    """Make a table of the differences between pairs of rows, paired by target.

    Args:
        results: The results of the ladder.
        pairs: Pairs such as ``aws_signs-aws_mask``. Default: those that the ladder was asked for.

    Raises:
        ValueError: A pair names a row that the ladder does not have.
    """
    lines = []
    for pair in results.get("pairs", []) if pairs is None else pairs:
        names = split_pair(pair)
        if missing := [name for name in names if name not in results["rows"]]:
            raise ValueError(
                f"pairs must name rows of the ladder, {', '.join(results['rows'])}; received {missing[0]!r}."
            )
        first, second = (np.array(results["rows"][name]["values"]) for name in names)
        positive = f"{(first > second).sum()} of {len(first)}"
        lines.append([" - ".join(names), _difference_text(results, first - second), positive])
    return Table(["paired difference", f"{results['measure']}, 95 %", "positive"], lines)


def _difference_text(results: Results, differences: np.ndarray) -> str:
    mean, half = interval(differences, ring=results.get("ring", True))
    return f"{mean:+.{_digits(results)}f} ± {half:.{_digits(results)}f}"


def conclusions(results: Results) -> list[str]:
    """Say what a ladder shows about aligned masks, or that it shows nothing.

    Args:
        results: The results of the ladder.
    """
    informative = results.get("informative")
    if informative is None:
        return []
    unit = "" if results["measure"] == "loss" else " points"
    lth = number_text(results, "lth", "minus_naive")
    if not informative:
        return [
            f"No conclusion: lth - naive is {lth}{unit}, which is too little beside its interval to tell masks apart. "
            "Use another sparsity (--scan), or train longer."
        ]
    found = [f"lth - naive is {lth}{unit}."]
    for row, numbers in results["rows"].items():
        if row.startswith("permuted") and numbers["gap_closed"] is not None and row != "permuted_signs":
            sure = "" if abs(numbers["minus_naive"]) > numbers["half_width"] else ", which may be chance"
            gap, gain = (number_text(results, row, name) for name in ("gap_closed", "minus_naive"))
            found.append(f"{row} gains {gain}{unit} and closes {gap} of the gap{sure}.")
    return ["\n".join(found)]


def match_table(results: Results) -> Table:
    """Make a table of how similar the matched units are, by row and group, before and after alignment.

    Args:
        results: The results of the ladder.
    """
    matches = {row: match for row, found in results["rows"].items() if (match := found.get("match"))}
    lines = [
        [row, group, *(f"{x:.2f}" for x in pair)] for row, match in matches.items() for group, pair in match.items()
    ]
    return Table(["row", "group of units", "as they were", "as matched"], lines)


def comparison(ladders: Sequence[Results], name: str, rows: Sequence[str] | None = None) -> Table:
    """Make a table of one number of several ladders side by side, or below each other if they are more than its rows.

    Args:
        ladders: The results of the ladders.
        name: The number, one of :data:`COMPARED`; "pairs" are the paired differences that the ladders were asked for.
        rows: The rows to compare. Default: all.
    """
    points = [results["about"]["point"] for results in ladders]
    shared = len({results["title"] for results in ladders}) == 1 < len(ladders)
    heads = points if shared and all(points) else [label(results) for results in ladders]
    if name == "pairs":
        tables = [dict((pair, text) for pair, text, _ in difference_table(results).rows) for results in ladders]
        rows = list(dict.fromkeys(pair for table in tables for pair in table))
        lines = [[row, *(table.get(row, "-") for table in tables)] for row in rows]
    else:
        rows = list(rows or dict.fromkeys(row for results in ladders for row in results["rows"]))
        lines = [[row, *(number_text(results, row, name) for results in ladders)] for row in rows]
    kept = [line for line in lines if set(line[1:]) != {"-"}]
    header = [name.replace("_", " "), *heads]
    if len(heads) > len(kept) > 0:  # a long table is easier to read than a wide one
        header, *kept = map(list, zip(header, *kept, strict=True))
    return Table(header, kept)


def label(results: Results) -> str:
    """Return the name of a ladder, with its place in a sweep."""
    return ", ".join(filter(None, [results["title"], results["about"]["point"]]))


def obtained(results: Results) -> str:
    """Say how the numbers of a ladder were obtained."""
    about = results["about"]
    code = about["commit"] or f"version {about['version']}"
    return (
        f"{len(results['seeds'])} seeds, {removed(results)}. {about['command']} at {code} on "
        f"{about['device']}, {about['date']}; torch {about['torch']}, transformers {about['transformers']}."
    )


def removed(results: Results, *, form: str = ".1f") -> str:
    """Say which share of the weights the masks of a ladder remove, and of the units if they remove units.

    Args:
        results: The results of the ladder.
        form: How percentages are written, in Python's format language.
    """
    rows = results["rows"].values()
    shares = {name: next((row[name] for row in rows if row.get(name) is not None), None) for name in _REMOVED}
    shares["sparsity"] = shares["sparsity"] or 0.0  # no row may have a mask
    found = [f"{100 * share:{form}} % {_REMOVED[name]}" for name, share in shares.items() if share is not None]
    return ", ".join(found)
