"""Bars: a number for every layer or group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .dead import DeadUnits
from .style import COLORS, HATCHES, check_filled, label, picture, write_csv

_MOST_LABELS = 300  # beyond them only every second is written, and so on


def plot_layers(
    path: str | Path, sparsities: Mapping[str, float], *, dead: Mapping[str, DeadUnits] | None = None, title: str
) -> None:
    """Draw the sparsity of every layer, with its dead neurons and heads marked.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        sparsities: Parameter name -> fraction removed, as of ``mask.layer_sparsities()``.
        dead: Parameter name -> what is dead in it, as of :func:`dead_units`.
        title: Title of the picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    check_filled("sparsities", sparsities)
    found = dead or {}
    none = DeadUnits(0, ())
    units = [found.get(name, none) for name in sparsities]
    with picture(path, 8, _height(len(sparsities), 0.26)) as axes:
        axes.barh(range(len(units)), [100 * value for value in sparsities.values()], 0.7, color=COLORS[5])
        _mark_dead(axes, units)
        _name_places(axes, list(sparsities))
        axes.set(xlabel="pruned (%)", title=title, xlim=(0, 100))
    rows = (
        (name, value, len(unit.neurons), unit.rows, len(unit.dead_heads), unit.heads)
        for (name, value), unit in zip(sparsities.items(), units, strict=True)
    )
    write_csv(path, ["parameter", "sparsity", "dead_neurons", "neurons", "dead_heads", "heads"], rows)


def plot_match(path: str | Path, groups: Mapping[str, tuple[float, float]], *, score: str, title: str) -> None:
    """Draw how well the units of two networks go together, group by group, before and after matching.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        groups: Group name -> score in the order they had, and as matched.
        score: Name of the score.
        title: Title of the picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    check_filled("groups", groups)
    with picture(path, 8, _height(len(groups), 0.4)) as axes:
        names = ("as they were", "matched")
        for number, values in enumerate(zip(*groups.values(), strict=True)):
            places = [i + 0.4 * number - 0.2 for i in range(len(groups))]
            axes.barh(
                places, values, 0.4, label=label(names[number]), color=COLORS[4 - 4 * number], edgecolor="black",
                linewidth=0.5, hatch=HATCHES[number],
            )  # fmt: skip
        _name_places(axes, list(groups))
        axes.set(xlabel=score, title=title)
        axes.figure.legend(loc="outside lower right", ncols=2)
    write_csv(path, ["group", "as_they_were", "matched"], ((name, *scores) for name, scores in groups.items()))


def _mark_dead(axes: Any, units: Sequence[DeadUnits]) -> None:
    """A marker at the share that is dead, and the count at the right edge."""
    notes: list[list[str]] = [[] for _ in units]
    for kind, offset, marker, color, counts in (
        ("neurons", -0.17, "X", COLORS[1], [(len(unit.neurons), unit.rows) for unit in units]),
        ("heads", 0.17, "D", COLORS[6], [(len(unit.dead_heads), unit.heads) for unit in units]),
    ):
        lost = {i: (some, many) for i, (some, many) in enumerate(counts) if some}
        for i, (some, many) in lost.items():
            notes[i].append(f"{some}/{many} {kind}")
        if lost:
            style = {"color": color, "markeredgecolor": "white", "markersize": 8, "clip_on": False}
            shares = [100 * some / many for some, many in lost.values()]
            axes.plot(shares, [i + offset for i in lost], marker, label=f"{kind} that are dead (%)", **style)
    for i, note in enumerate(notes):
        axes.text(102, i, " · ".join(note), va="center", fontsize=7)
    if any(notes):
        axes.figure.legend(loc="outside lower right", ncols=2)


def _height(count: int, each: float) -> float:
    return min(each * count, 100) + 1.4


def _name_places(axes: Any, names: Sequence[str]) -> None:
    step = -(-len(names) // _MOST_LABELS)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x")
