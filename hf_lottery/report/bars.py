"""Bars: a number for every layer or group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..alignment.match import Match
from ..alignment.match_report import MatchReport
from ..masks.mask import Mask
from .rows import EmptyRows
from .style import COLORS, HATCHES, Picture, check_filled, described, label, picture, write_csv

_WIDTH = 6.4  # inches; a wider picture cannot be read on a phone
_MOST_LABELS = 300  # with more places only every second one is named, then every third, and so on


def plot_layers(
    path: str | Path,
    masks: Mask | Mapping[str, Mask] | Mapping[str, float],
    *,
    dead: Mapping[str, EmptyRows] | None = None,
    title: str = "",
) -> Picture:
    """Draw the sparsity of every layer of one mask or several, with the empty neurons and heads of one marked.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        masks: A mask, or label -> mask, or parameter name -> fraction removed.
        dead: Parameter name -> its neurons and heads without a weight, as :func:`empty_rows` finds them; for one
            mask only.
        title: Title of the picture.

    Returns:
        The picture, for a :class:`Section`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw, or empty rows are to be marked on several masks.
    """
    check_filled("masks", masks)
    series = _sparsities(masks)
    if len(series) == 1:
        (sparsities,) = series.values()
        _plot_mask(path, sparsities, dead or {}, title)
    elif dead:
        raise ValueError(f"empty rows can be marked on one mask; received {len(series)} masks. Draw each by itself.")
    else:
        _plot_masks(path, series, title)
    return described(path, "sparsity of every layer", title)


def plot_match(
    path: str | Path,
    match: Match | MatchReport | Mapping[str, tuple[float, float]],
    *,
    score: str = "score",
    title: str = "",
) -> Picture:
    """Draw how well the units of two networks go together, group by group, before and after matching.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        match: What a matching returned, or its report, or group name -> (score in the order they had, score as
            matched).
        score: Name of the score, such as "mean correlation of units".
        title: Title of the picture.

    Returns:
        The picture, for a :class:`Section`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    report = match.report if isinstance(match, Match) else match
    if isinstance(report, MatchReport):
        groups = {name: (group.identity, group.matched) for name, group in report.groups.items()}
    else:
        groups = dict(report)
    check_filled("groups", groups)
    with picture(path, _WIDTH, _height(len(groups), 0.4)) as axes:
        names = ("as they were", "matched")
        for number, values in enumerate(zip(*groups.values(), strict=True)):
            places = [i + 0.4 * number - 0.2 for i in range(len(groups))]
            axes.barh(
                places, values, 0.4, label=label(names[number]), color=COLORS[4 - 4 * number], edgecolor="black",
                linewidth=0.5, hatch=HATCHES[number],
            )  # fmt: skip
        axes.axvline(0, color="0.35", linewidth=1)
        _name_places(axes, list(groups))
        axes.set(xlabel=score, title=title)
        axes.figure.legend(loc="outside lower right", ncols=2)
    write_csv(path, ["group", "as_they_were", "matched"], ((name, *scores) for name, scores in groups.items()))
    return described(path, f"{score} of every group, as they were and matched", title)


def _sparsities(masks: Mask | Mapping[str, Mask] | Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Label -> {parameter name: fraction removed}."""
    if isinstance(masks, Mask):
        return {"mask": masks.layer_sparsities()}
    found = {name: mask.layer_sparsities() for name, mask in masks.items() if isinstance(mask, Mask)}
    return found or {"mask": {name: value for name, value in masks.items() if not isinstance(value, Mask)}}


def _plot_mask(path: str | Path, sparsities: Mapping[str, float], dead: Mapping[str, EmptyRows], title: str) -> None:
    units = [dead.get(name, EmptyRows(0, ())) for name in sparsities]
    with picture(path, _WIDTH, _height(len(sparsities), 0.3)) as axes:
        axes.barh(range(len(units)), [100 * value for value in sparsities.values()], 0.7, color=COLORS[5])
        _mark_dead(axes, units)
        _name_places(axes, list(sparsities))
        axes.set(xlabel="weights pruned (%)", title=title, xlim=(0, 100))
    rows = (
        (name, value, len(unit.neurons), unit.rows, len(unit.dead_heads), unit.heads)
        for (name, value), unit in zip(sparsities.items(), units, strict=True)
    )
    write_csv(path, ["parameter", "sparsity", "dead_neurons", "neurons", "dead_heads", "heads"], rows)


def _plot_masks(path: str | Path, series: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Bars of several masks beside each other; a layer that a mask does not cover has no bar."""
    layers = list(dict.fromkeys(name for sparsities in series.values() for name in sparsities))
    wide = 0.8 / len(series)
    with picture(path, _WIDTH, _height(len(layers), 0.16 + 0.12 * len(series))) as axes:
        for number, (name, sparsities) in enumerate(series.items()):
            places = [i - 0.4 + (number + 0.5) * wide for i, layer in enumerate(layers) if layer in sparsities]
            values = [100 * sparsities[layer] for layer in layers if layer in sparsities]
            axes.barh(
                places, values, wide, label=label(name), color=COLORS[number % len(COLORS)], edgecolor="white",
                linewidth=0.5, hatch=HATCHES[number % len(HATCHES)],
            )  # fmt: skip
        _name_places(axes, layers)
        axes.set(xlabel="weights pruned (%)", title=title, xlim=(0, 100))
        axes.figure.legend(loc="outside lower right", ncols=min(len(series), 4))
    rows = ((name, layer, value) for name, sparsities in series.items() for layer, value in sparsities.items())
    write_csv(path, ["mask", "parameter", "sparsity"], rows)


def _mark_dead(axes: Any, units: Sequence[EmptyRows]) -> None:
    """Put a marker at the share of the units that is dead, and the count at the right edge."""
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
            axes.plot(shares, [i + offset for i in lost], marker, label=f"{kind} without a weight (%)", **style)
    for i, note in enumerate(notes):
        axes.text(102, i, " · ".join(note), va="center", fontsize=8)
    if any(notes):
        axes.figure.legend(loc="outside lower right", ncols=2)


def _height(count: int, each: float) -> float:
    return min(each * count, 100) + 1.4


def _name_places(axes: Any, names: Sequence[str]) -> None:
    step = -(-len(names) // _MOST_LABELS)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x")
