"""Which rows are best, or cannot be told from the best, over several ladders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...report import Table
from .paired import direction, interval
from .table import Results, label, number_text


def ranking(ladders: Sequence[Results], rows: Sequence[str]) -> Table:
    """Make a table of gains over ``naive``, with a star where a row is the best or cannot be told from it.

    The difference of such a row to the best, paired by target, has a 95 % interval that holds 0. The last line counts
    stars. Ladders that are too little informative for a conclusion get none.

    Args:
        ladders: The results of the ladders.
        rows: The rows to rank, such as the ways to align a mask.
    """
    lines, stars, had = [], dict.fromkeys(rows, 0), dict.fromkeys(rows, 0)
    for results in ladders:
        texts = {row: number_text(results, row, "minus_naive") for row in rows}
        for row in near_best(results, rows) if results.get("informative") else ():
            texts[row] += " *"
            stars[row] += 1
        for row in rows:
            had[row] += bool(results.get("informative")) and row in results["rows"]
        lines.append([label(results), *texts.values()])
    lines.append(["stars", *(f"{stars[row]} of {had[row]}" for row in rows)])
    return Table(["minus naive", *rows], lines)


def near_best(results: Results, rows: Sequence[str]) -> list[str]:
    """Return the best of some rows of a ladder, and those whose paired difference to it may be 0.

    Args:
        results: The results of the ladder.
        rows: The rows to choose from; those that the ladder does not have are left out.
    """
    sign = direction(results["measure"])
    values = {row: sign * np.array(results["rows"][row]["values"]) for row in rows if row in results["rows"]}
    if not values:
        return []
    best = max(values.values(), key=np.mean)
    found = []
    for row, value in values.items():
        mean, half = interval(best - value, ring=results.get("ring", True))
        if mean <= half:
            found.append(row)
    return found
