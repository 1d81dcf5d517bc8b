"""Pictures of ladders: how much better each row is than the mask as it is, a panel for each ladder; and their page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...report import Picture, Section
from ...report.style import COLORS, figure, write_csv
from .paired import direction
from .table import (
    COMPARED,
    Results,
    comparison,
    conclusions,
    difference_table,
    label,
    ladder_table,
    match_table,
    number_text,
    obtained,
    removed,
)

NAIVE = "mask as it is"


class Kind(NamedTuple):
    """A kind of rows, and how it is drawn."""

    name: str
    color: str
    marker: str


REFERENCE = Kind("references", COLORS[6], "o")
ALIGNED = Kind("aligned masks", COLORS[0], "s")
SIGNS = Kind("masks with signs", COLORS[2], "^")
CONTROL = Kind("controls", COLORS[1], "D")
OTHER = Kind("other rows", COLORS[3], "v")

# Row -> its kind, and what a reader who has not seen the table is told.
LABELS: dict[str, tuple[Kind, str]] = {
    "dense": (REFERENCE, "dense network"),
    "lth": (REFERENCE, "the network's own ticket"),
    "lrr": (REFERENCE, "its own subnetwork, LRR"),
    "aws": (REFERENCE, "its own subnetwork, AWS"),
    "permuted_weight": (ALIGNED, "aligned by weights"),
    "permuted_activation": (ALIGNED, "aligned by activations"),
    "permuted_one_place": (ALIGNED, "by activations, one place each"),
    "permuted_weight_after": (ALIGNED, "by activations, then weights"),
    "permuted_learned": (ALIGNED, "aligned by training"),
    "permuted_early": (ALIGNED, "by early activations"),
    "permuted_weight_residual": (ALIGNED, "by weights, residual too"),
    "permuted_activation_residual": (ALIGNED, "by activations, residual too"),
    "permuted_learned_residual": (ALIGNED, "by training, residual too"),
    "lrr_signs": (SIGNS, "mask and signs, LRR"),
    "lrr_signs_norms": (SIGNS, "mask, signs and norms, LRR"),
    "aws_signs": (SIGNS, "mask and signs, AWS"),
    "aws_signs_norms": (SIGNS, "mask, signs and norms, AWS"),
    "dense_signs": (SIGNS, "mask, signs of the dense network"),
    "permuted_signs": (SIGNS, "mask and signs, aligned"),
    "random": (CONTROL, "mask shuffled in each layer"),
    "magnitude": (CONTROL, "its largest where rows start"),
    "lrr_mask": (CONTROL, "mask without signs, LRR"),
    "aws_mask": (CONTROL, "mask without signs, AWS"),
    "random_signs": (CONTROL, "mask with random signs"),
    "shuffled_signs": (CONTROL, "mask with shuffled signs"),
}


def plot_ladders(path: Path, ladders: Sequence[Results], rows: Sequence[str] | None = None) -> Picture:
    """Draw how much better than the mask as it is every row trains, with 95 % intervals, a panel for each ladder.

    The best row is at the top, and better is to the right, for losses too. A ladder that is not informative says so.

    Args:
        path: The PNG to write; the numbers are written beside it as CSV.
        ladders: The results of the ladders.
        rows: The rows to draw. Default: all.

    Raises:
        ValueError: No ladder has one of the rows and ``naive`` to compare it to.
    """
    panels = [(results, shown) for results in ladders if len(shown := _sorted_rows(results, rows)) > 1]
    if not panels:
        wanted = "one more row" if rows is None else f"one of {', '.join(rows)}"
        raise ValueError(
            f"a ladder to draw must have the row naive and {wanted}; received {', '.join(map(label, ladders))} without "
            "them. Leave the picture out."
        )
    columns = 1 if len(panels) == 1 else 2
    lines = [max(len(shown) for _, shown in panels[i : i + columns]) for i in range(0, len(panels), columns)]
    heights = [1.15 + 0.34 * count for count in lines]
    with figure(path, 5.6 if columns == 1 else 10.4, sum(heights) + 0.4) as drawn:
        drawn.get_layout_engine().set(h_pad=0.1)
        grid = drawn.subplots(len(lines), columns, squeeze=False, height_ratios=heights).flatten()
        for axes, (results, shown) in zip(grid, panels, strict=False):
            _draw_panel(axes, results, shown)
        for axes in grid[len(panels) :]:
            axes.remove()
        _name_kinds(drawn, {_named(row)[0] for _, shown in panels for row in shown if row != "naive"})
    _write_numbers(path, panels)
    names = "; ".join(label(results) for results, _ in panels)
    return Picture(path, f"Gain of every row over the mask as it is, paired by target, with 95 % intervals: {names}")


def sections(ladders: Sequence[Results], folder: Path) -> list[Section]:
    """Make the page of some ladders.

    Args:
        ladders: The results of the ladders.
        folder: Where the pictures are written.
    """
    found = []
    for number, results in enumerate(ladders):
        name = label(results)
        drawn = None
        if "naive" in results["rows"]:
            drawn = plot_ladders(folder / ("ladder.png" if len(ladders) == 1 else f"ladder-{number}.png"), [results])
        text = "\n\n".join([*conclusions(results), obtained(results)])
        found.append(Section(name, text, picture=drawn))
        more = {
            "Numbers": ladder_table(results),
            "Paired differences": difference_table(results),
            "Similarity of units": match_table(results),
        }
        found += [Section(f"{title}: {name}", table=table) for title, table in more.items() if table.rows]
    if len(ladders) > 1:
        compared = {name: comparison(ladders, name) for name in COMPARED[:4]}
        found += [Section(f"Compared: {name.replace('_', ' ')}", table=t) for name, t in compared.items() if t.rows]
    return found


def _sorted_rows(results: Results, rows: Sequence[str] | None) -> list[str]:
    """The rows that can be drawn, the best first, with ``naive`` among them."""
    sign = direction(results["measure"])
    gains = {
        row: sign * numbers["minus_naive"]
        for row, numbers in results["rows"].items()
        if (row == "naive" or rows is None or row in rows) and numbers["minus_naive"] is not None
    }
    return sorted(gains, key=lambda row: 0.0 if row == "naive" else gains[row], reverse=True)


def _write_numbers(path: Path, panels: Sequence[tuple[Results, Sequence[str]]]) -> None:
    numbers = [
        (label(results), row, results["rows"][row]["minus_naive"], results["rows"][row]["half_width"])
        for results, shown in panels
        for row in shown
        if row != "naive"
    ]
    write_csv(path, ["ladder", "row", "minus_naive", "half_width"], numbers)


def _named(row: str) -> tuple[Kind, str]:
    """The kind and the label of a row; files of other versions may hold rows that this one does not know."""
    return LABELS.get(row, (OTHER, row))


def _draw_panel(axes: Any, results: Results, rows: Sequence[str]) -> None:
    axes.axvline(0, color="0.45", linewidth=1)
    for place, row in enumerate(rows):
        if row == "naive":
            axes.plot(0, place, "o", markerfacecolor="white", markeredgecolor="0.45")
            continue
        found, (_, color, marker) = results["rows"][row], _named(row)[0]
        axes.errorbar(
            found["minus_naive"], place, xerr=found["half_width"], color=color, marker=marker, markersize=5, capsize=3
        )
    labels = [NAIVE if row == "naive" else _named(row)[1] for row in rows]
    axes.set_yticks([place - 0.15 for place in range(len(rows))], labels, fontsize=9)
    axes.set_yticks([place + 0.25 for place in range(len(rows))], rows, fontsize=6.5, color="0.35", minor=True)
    axes.tick_params(axis="y", which="both", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x")
    if results["measure"] == "loss":
        axes.invert_xaxis()  # better is to the right
        axes.set_xlabel("loss minus that of the mask as it is; lower is better →", fontsize=8.5)
    else:
        axes.set_xlabel("points of accuracy over the mask as it is; better →", fontsize=8.5)
    axes.set_title(_title(results), loc="left", fontsize=9)
    if results.get("informative") is False:
        axes.set_facecolor("0.93")


def _title(results: Results) -> str:
    """What was trained, how many pairs, and whether a conclusion may be drawn."""
    places = [place for place in results["about"]["point"].split(", ") if place and not place.startswith("sparsity=")]
    lines = [
        textwrap.fill(", ".join([results["title"], *places]), 46),
        f"{len(results['seeds'])} pairs, {removed(results, form='.3g')}, 95 % intervals",
    ]
    if results.get("informative") is False:
        lines.append(f"no conclusion: own ticket only {number_text(results, 'lth', 'minus_naive')}")
    return "\n".join(lines)


def _name_kinds(drawn: Any, kinds: set[Kind]) -> None:
    """Add the legend, in the order of the kinds."""
    from matplotlib.lines import Line2D

    shown = [kind for kind in (REFERENCE, ALIGNED, SIGNS, CONTROL, OTHER) if kind in kinds]
    handles = [Line2D([], [], color=kind.color, marker=kind.marker, label=kind.name) for kind in shown]
    drawn.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8.5, handlelength=1.5)
