"""Curves: a measure against sparsity, along a line between networks or norms, and from level to level."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..connectivity.barrier import Barrier
from .records import History, metric_by_level, metric_of, numbers_of
from .style import Picture, check_filled, curve_style, described, label, picture, write_csv

Place = TypeVar("Place", int, float)
NormPath = Sequence[tuple[float, Any]]


def plot_against_density(
    path: str | Path,
    series: History | Mapping[str, History | Mapping[float, Sequence[float]]],
    *,
    ylabel: str,
    title: str = "",
    percent: bool = False,
    noise: float | None = None,
) -> Picture:
    """Draw a measure against the fraction of weights that stays, as a PNG with its numbers as CSV beside it.

    A dashed line shows the dense network: the mean at sparsity 0 of the first series that has a value there.

    Args:
        path: The file to write.
        series: What a search returned (the levels of ``find_ticket``, or ``trainer.history``), or label -> such a
            history, or label -> {sparsity: values, one for each seed}. The line is the mean, the band one standard
            deviation.
        ylabel: Name of the measure; in a history, the metric of this name is drawn.
        title: Title of the picture.
        percent: Whether the measure is a fraction that the axis shows in percent.
        noise: Half the width of a band around the dense line, within which a difference to it means nothing.

    Returns:
        The picture, for a :class:`Section`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    curves = {name: _by_sparsity(one, ylabel) for name, one in _labelled(series, "ticket").items()}
    check_filled("series", curves)
    with picture(path, 5.6, 3.6) as axes:
        for number, (name, points) in enumerate(curves.items()):
            kept = [100 * (1 - sparsity) for sparsity in points]
            mean = np.array([np.mean(values) for values in points.values()])
            spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in points.values()])
            style = curve_style(number)
            axes.plot(kept, mean, label=label(f"{name}, {_seeds(points)}"), **style)
            axes.fill_between(kept, mean - spread, mean + spread, alpha=0.2, color=style["color"])
        if dense := [points[0.0] for points in curves.values() if 0.0 in points]:
            level = float(np.mean(dense[0]))
            axes.axhline(level, color="0.35", linestyle=(0, (1, 2)), label="dense")
            if noise:
                axes.axhspan(level - noise, level + noise, color="0.5", alpha=0.15, label="noise around dense")
        _show_density(axes, {100 * (1 - sparsity) for points in curves.values() for sparsity in points})
        _show_measure(axes, ylabel, percent=percent)
        axes.set_title(title)
        axes.grid()
        axes.legend()
    rows = (
        (name, sparsity, run, value)
        for name, points in curves.items()
        for sparsity, values in points.items()
        for run, value in enumerate(values)
    )
    write_csv(path, ["series", "sparsity", "run", ylabel], rows)
    return described(path, f"{ylabel} against the weights kept", title)


def plot_barriers(
    path: str | Path,
    barriers: Barrier | Mapping[str, Barrier | Mapping[float, float]],
    *,
    ylabel: str = "error",
    title: str = "",
    percent: bool = False,
) -> Picture:
    """Draw errors on the straight line between two networks, such as before and after alignment.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        barriers: What ``error_barrier`` returned, or label -> such a barrier, or label -> {place on the line: error
            there}, where 0 is the first network and 1 the second.
        ylabel: Name of the error.
        title: Title of the picture.
        percent: Whether the error is a fraction that the axis shows in percent, from zero on.

    Returns:
        The picture, for a :class:`Section`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    if isinstance(barriers, Barrier):
        barriers = {f"barrier {barriers.barrier:.4g}": barriers}
    curves = {name: dict(one.curve if isinstance(one, Barrier) else one) for name, one in barriers.items()}
    xlabel = "from the first network (0) to the second (1)"
    _plot(path, curves, x="alpha", xlabel=xlabel, ylabel=ylabel, title=title, span=0.1, percent=percent)
    return described(path, f"{ylabel} on the straight line between two networks", title)


def plot_norm_path(
    path: str | Path,
    curves: NormPath | Mapping[str, NormPath | Mapping[float, float]],
    *,
    ylabel: str,
    title: str = "",
    percent: bool = False,
) -> Picture:
    """Draw a measure on the way from the trained norm parameters to their initial values.

    The method "A Winning Sign" keeps this curve flat.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        curves: What ``norm_path`` returned, or label -> such a path, or label -> {share of the initial values:
            measure}.
        ylabel: Name of the measure; in a path with several metrics, the metric of this name is drawn.
        title: Title of the picture.
        percent: Whether the measure is a fraction that the axis shows in percent, from zero on.

    Returns:
        The picture, for a :class:`Section`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    drawn = {name: _along_norms(one, ylabel) for name, one in _labelled(curves, "network").items()}
    xlabel = "norms: trained (0) to initial (1)"
    _plot(path, drawn, x="alpha", xlabel=xlabel, ylabel=ylabel, title=title, span=0.1, percent=percent)
    return described(path, f"{ylabel} from the trained to the initial norm parameters", title)


def plot_sign_flips(
    path: str | Path, flips: History | Mapping[str, History | Mapping[int, float]], *, title: str = ""
) -> Picture:
    """Draw the fraction of the kept weights whose sign changed in training, level after level.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        flips: ``trainer.history`` of a search, or label -> such a history, or label -> {level: fraction in [0, 1]}.
            Levels of ``find_ticket`` will do if their metrics hold ``sign_flips``.
        title: Title of the picture.

    Returns:
        The picture, for a :class:`Section`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    curves = {}
    for name, one in _labelled(flips, "ticket").items():
        is_curve = isinstance(one, Mapping)
        curves[name] = dict(one) if is_curve else {r.level: share for r, share in metric_by_level(one, "sign_flips")}
    _plot(path, curves, x="level", xlabel="level", ylabel="sign flips", title=title, span=0.01, percent=True)
    return described(path, "sign flips of every level", title)


def _labelled(things: Any, name: str) -> Mapping[str, Any]:
    """Label -> thing; a single thing, which is no mapping, gets a name."""
    return things if isinstance(things, Mapping) else {name: list(things)}


def _by_sparsity(series: Any, metric: str) -> dict[float, Sequence[float]]:
    """Sparsity -> values. In a history, a final run replaces the level of the same sparsity."""
    if isinstance(series, Mapping):
        return dict(series)
    return {record.sparsity: [value] for record, value in metric_by_level(series, metric)}


def _along_norms(path: Any, metric: str) -> dict[float, float]:
    """Share of the initial values -> the metric there."""
    points = {}
    for alpha, metrics in path.items() if isinstance(path, Mapping) else path:
        value = metric_of(metrics, metric)
        if value is None:
            names = ", ".join(numbers_of(metrics)) or "none"
            raise ValueError(f"a point of the norm path must have the metric {metric!r}; received {names}.")
        points[alpha] = value
    return points


def _seeds(points: Mapping[float, Sequence[float]]) -> str:
    count = max(map(len, points.values()))
    return "one seed" if count == 1 else f"{count} seeds"


def _show_density(axes: Any, kept: Collection[float]) -> None:
    """Make the horizontal axis that of the weights kept, in percent: logarithmic, dense on the left."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    found = sorted((value for value in kept if value > 0), reverse=True)
    left, right = axes.get_xlim()
    room = (left / right) ** 0.075  # ticks that lie nearer to each other than this would overlap
    ticks = found[:1]
    for value in found[1:]:
        if ticks[-1] / value > room:
            ticks.append(value)
    axes.set_xticks(ticks, [f"{tick:.3g}" if tick < 10 else f"{tick:.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("weights kept (%)")


def _show_measure(axes: Any, ylabel: str, *, percent: bool) -> None:
    """Name the vertical axis, and show fractions in percent."""
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
    axes.set_ylabel(f"{ylabel} (%)" if percent else ylabel)


def _plot(
    path: str | Path,
    curves: Mapping[str, Mapping[Place, float]],
    *,
    x: str,
    xlabel: str,
    ylabel: str,
    title: str,
    span: float,
    percent: bool,
) -> None:
    check_filled("curves", curves)
    with picture(path, 5.6, 3.6) as axes:
        for number, (name, points) in enumerate(curves.items()):
            axes.plot(list(points), list(points.values()), label=label(name), **curve_style(number))
        if all(isinstance(place, int) for points in curves.values() for place in points):
            axes.xaxis.get_major_locator().set_params(integer=True)
        low, high = axes.get_ylim()
        if (more := (span - (high - low)) / 2) > 0:  # without it, noise would fill the picture of a flat curve
            axes.set_ylim(low - more, high + more)
        if percent:
            axes.set_ylim(bottom=min(0.0, *(value for points in curves.values() for value in points.values())))
        _show_measure(axes, ylabel, percent=percent)
        axes.set(xlabel=xlabel, title=title)
        axes.grid()
        axes.legend()
    rows = ((name, place, value) for name, points in curves.items() for place, value in points.items())
    write_csv(path, ["series", x, ylabel], rows)
