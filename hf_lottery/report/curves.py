"""Curves: a measure against sparsity, along a line between networks or norms, and from level to level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    Returns:
        The picture, for a :class:`Section`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    curves = {name: _by_sparsity(one, ylabel) for name, one in _labelled(series, "ticket").items()}
    check_filled("series", curves)
    with picture(path, 7, 4.2) as axes:
        for number, (name, points) in enumerate(curves.items()):
            kept = [100 * (1 - sparsity) for sparsity in points]
            mean = np.array([np.mean(values) for values in points.values()])
            spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in points.values()])
            style = curve_style(number)
            axes.plot(kept, mean, label=label(name), **style)
            axes.fill_between(kept, mean - spread, mean + spread, alpha=0.2, color=style["color"])
        if dense := [points[0.0] for points in curves.values() if 0.0 in points]:
            axes.axhline(float(np.mean(dense[0])), color="0.35", linestyle=(0, (1, 2)), label="dense")
        _show_density(axes)
        axes.set(ylabel=ylabel, title=title)
        axes.grid()
        axes.legend()
    rows = (
        (name, sparsity, run, value)
        for name, points in curves.items()
        for sparsity, values in points.items()
        for run, value in enumerate(values)
    )
    write_csv(path, ["series", "sparsity", "run", ylabel], rows)
    return described(path, f"{ylabel} against the weights that stay", title)


def plot_barriers(
    path: str | Path,
    barriers: Barrier | Mapping[str, Barrier | Mapping[float, float]],
    *,
    ylabel: str = "error",
    title: str = "",
) -> Picture:
    """Draw errors on the straight line between two networks, such as before and after alignment.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        barriers: What ``error_barrier`` returned, or label -> such a barrier, or label -> {place on the line: error
            there}, where 0 is the first network and 1 the second.
        ylabel: Name of the error.
        title: Title of the picture.

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
    _plot(path, curves, x="alpha", xlabel=xlabel, ylabel=ylabel, title=title, span=0.1)
    return described(path, f"{ylabel} on the straight line between two networks", title)


def plot_norm_path(
    path: str | Path,
    curves: NormPath | Mapping[str, NormPath | Mapping[float, float]],
    *,
    ylabel: str,
    title: str = "",
) -> Picture:
    """Draw a measure on the way from the trained norm parameters to their initial values.

    The method "A Winning Sign" keeps this curve flat.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        curves: What ``norm_path`` returned, or label -> such a path, or label -> {share of the initial values:
            measure}.
        ylabel: Name of the measure; in a path with several metrics, the metric of this name is drawn.
        title: Title of the picture.

    Returns:
        The picture, for a :class:`Section`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    drawn = {name: _along_norms(one, ylabel) for name, one in _labelled(curves, "network").items()}
    _plot(path, drawn, x="alpha", xlabel="norms: trained (0) to initial (1)", ylabel=ylabel, title=title, span=0.1)
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
    _plot(path, curves, x="level", xlabel="level", ylabel="sign flips", title=title, span=0.01)
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


def _show_density(axes: Any) -> None:
    """Make the horizontal axis that of the weights that stay, in percent: logarithmic, dense on the left."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = [tick for tick in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1) if tick >= min(axes.get_xlim())]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("weights that stay (%)")


def _plot(
    path: str | Path,
    curves: Mapping[str, Mapping[Place, float]],
    *,
    x: str,
    xlabel: str,
    ylabel: str,
    title: str,
    span: float,
) -> None:
    check_filled("curves", curves)
    with picture(path, 7, 4.2) as axes:
        for number, (name, points) in enumerate(curves.items()):
            axes.plot(list(points), list(points.values()), label=label(name), **curve_style(number))
        if all(isinstance(place, int) for points in curves.values() for place in points):
            axes.xaxis.get_major_locator().set_params(integer=True)
        low, high = axes.get_ylim()
        if (more := (span - (high - low)) / 2) > 0:  # without it, noise would fill the picture of a flat curve
            axes.set_ylim(low - more, high + more)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.grid()
        axes.legend()
    rows = ((name, place, value) for name, points in curves.items() for place, value in points.items())
    write_csv(path, ["series", x, ylabel], rows)
