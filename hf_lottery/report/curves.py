"""Curves: a measure against sparsity, along a line between networks or norms, and from level to level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .style import check_filled, curve_style, label, picture, write_csv


def plot_against_density(
    path: str | Path, series: Mapping[str, Mapping[float, Sequence[float]]], *, ylabel: str, title: str
) -> None:
    """Draw a measure against the fraction of weights that stays, as a PNG with its numbers as CSV beside it.

    A series that has a value at sparsity 0 gives the dense line, its mean there.

    Args:
        path: The file to write.
        series: Label -> {sparsity: values, one a seed}. The line is the mean, the band one standard deviation.
        ylabel: Name of the measure.
        title: Title of the picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    import numpy as np

    check_filled("series", series)
    with picture(path, 7, 4.2) as axes:
        for number, (name, points) in enumerate(series.items()):
            kept = [100 * (1 - sparsity) for sparsity in points]
            mean = np.array([np.mean(values) for values in points.values()])
            spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in points.values()])
            style = curve_style(number)
            axes.plot(kept, mean, label=label(name), **style)
            axes.fill_between(kept, mean - spread, mean + spread, alpha=0.2, color=style["color"])
        if dense := [points[0.0] for points in series.values() if 0.0 in points]:
            axes.axhline(float(np.mean(dense[0])), color="0.35", linestyle=(0, (1, 2)), label="dense")
        axes.set_xscale("log")
        axes.invert_xaxis()
        ticks = [tick for tick in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1) if tick >= min(axes.get_xlim())]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="weights that stay (%)", ylabel=ylabel, title=title)
        axes.grid()
        axes.legend()
    write_csv(
        path,
        ["series", "sparsity", "run", ylabel],
        (
            (name, sparsity, run, value)
            for name, points in series.items()
            for sparsity, values in points.items()
            for run, value in enumerate(values)
        ),
    )


def plot_barriers(
    path: str | Path, curves: Mapping[str, Mapping[float, float]], *, ylabel: str = "error", title: str
) -> None:
    """Draw errors on the straight line between two networks, such as before and after alignment.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        curves: Label -> {where on the line, 0 the first network and 1 the second: error there}.
        ylabel: Name of the error.
        title: Title of the picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    xlabel = "from the first network (0) to the second (1)"
    _plot(path, curves, x="alpha", xlabel=xlabel, ylabel=ylabel, title=title, span=0.1)


def plot_norm_path(path: str | Path, curves: Mapping[str, Mapping[float, float]], *, ylabel: str, title: str) -> None:
    """Draw a measure on the way from the trained norm parameters to their initial values, which AWS keeps flat.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        curves: Label -> {share of the initial values: measure}, such as ``{"ticket": dict(norm_path(...))}``.
        ylabel: Name of the measure.
        title: Title of the picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    _plot(path, curves, x="alpha", xlabel="norms: trained (0) to initial (1)", ylabel=ylabel, title=title, span=0.1)


def plot_sign_flips(path: str | Path, curves: Mapping[str, Mapping[int, float]], *, title: str) -> None:
    """Draw the fraction of the kept weights that trained into another sign, level after level.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        curves: Label -> {level: fraction in [0, 1]}.
        title: Title of the picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    _plot(path, curves, x="level", xlabel="level", ylabel="sign flips", title=title, span=0.01)


def _plot(
    path: str | Path,
    curves: Mapping[str, Mapping[Any, float]],
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
        if (more := (span - (high - low)) / 2) > 0:  # or noise fills the picture of something flat
            axes.set_ylim(low - more, high + more)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.grid()
        axes.legend()
    rows = ((name, place, value) for name, points in curves.items() for place, value in points.items())
    write_csv(path, ["series", x, ylabel], rows)
