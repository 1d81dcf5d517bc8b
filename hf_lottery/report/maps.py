"""Maps: numbers over two axes, as colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..connectivity.plane import Plane
from ..masks.mask import Overlap
from .style import Picture, check_filled, described, picture, write_csv

_MOST_NUMBERS = 12  # with more columns, cells have no room for a number
_MOST_LABELS = 60  # with more columns only every second one is named, then every third, and so on


def plot_overlap(
    path: str | Path,
    overlap: Overlap
    | Mapping[str, Overlap]
    | Mapping[str, tuple[Overlap, ...]]
    | Mapping[str, Mapping[str, float | Overlap]],
    *,
    measure: str = "overlap",
    title: str = "",
) -> Picture:
    """Draw the overlap of two masks as a heat map, with a row for each layer.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        overlap: What ``mask.overlap``, ``overlap_by_parameter``, ``overlap_by_head`` or ``overlap_by_group`` returned;
            or row -> {column: overlap}, such as "naive" -> {layer: overlap}; or other fractions in [0, 1] in place of
            overlaps. A column that a row lacks is left grey.
        measure: Name of the fraction.
        title: Title of the picture.

    Returns:
        The picture, for a :class:`Section`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    rows = {"all": overlap} if isinstance(overlap, Overlap) else overlap
    values = {name: _fractions(row) for name, row in rows.items()}
    check_filled("overlap", values)
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    grid = np.array([[row.get(column, np.nan) for column in columns] for row in values.values()], dtype=float)
    longest = max(map(len, columns))
    with picture(path, min(4 + 0.8 * len(columns), 16), min(0.3 * len(values), 100) + 1.4 + 0.06 * longest) as axes:
        axes.set_facecolor("0.8")
        image = axes.imshow(np.ma.masked_invalid(grid), cmap="viridis", vmin=0, vmax=1, aspect="auto")
        step = -(-len(columns) // _MOST_LABELS)
        axes.set_xticks(range(0, len(columns), step), columns[::step], fontsize=8, rotation=30, ha="right")
        axes.set_yticks(range(len(values)), list(values), fontsize=7)
        axes.set_title(title)
        axes.figure.colorbar(image, ax=axes, label=measure)
        for (i, j), value in np.ndenumerate(grid):
            if len(columns) <= _MOST_NUMBERS and np.isfinite(value):
                color = "black" if value > 0.45 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    cells = ((name, column, value) for name, row in values.items() for column, value in row.items())
    write_csv(path, ["row", "column", measure], cells)
    return described(path, f"{measure}, layer by layer", title)


def plot_plane(
    path: str | Path,
    plane: Plane,
    *,
    labels: Sequence[str] = ("a", "b", "c"),
    measure: str = "error",
    title: str = "",
) -> Picture:
    """Draw the error on the plane through three networks.

    Args:
        path: The PNG to write; the numbers go beside it as CSV, with a row for each network.
        plane: What ``loss_plane`` returned. Places where the error is not finite are left grey.
        labels: Names of the three networks.
        measure: Name of the error.
        title: Title of the picture.

    Returns:
        The picture, for a :class:`Section`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There are not three labels, the errors do not have the shape of the grid, or none is finite.
    """
    x, y, networks = plane.xs, plane.ys, dict(zip(labels, plane.places, strict=True))
    grid = np.asarray(plane.errors, dtype=float)
    if grid.shape != (len(y), len(x)) or min(grid.shape) < 2:
        raise ValueError(
            f"a plane must have a row of errors for each y and a column for each x, at least 2 of each; received shape "
            f"{grid.shape} for {len(y)} and {len(x)}."
        )
    if not np.isfinite(grid).any():
        raise ValueError("a plane must have finite errors; received none. Evaluate nearer to the networks.")
    with picture(path, 7, 5.4) as axes:
        axes.set_facecolor("0.8")
        low, high = grid[np.isfinite(grid)].min(), grid[np.isfinite(grid)].max()
        levels = np.linspace(low, max(high, low + 1e-6 * max(1, abs(low))), 17)
        filled = axes.contourf(x, y, np.ma.masked_invalid(grid), levels=levels, cmap="viridis")
        axes.contour(filled, levels=filled.levels[::2], colors="black", linewidths=0.5, alpha=0.6)
        for number, (name, place) in enumerate(networks.items()):
            axes.plot(*place, "o^sDvPX"[number % 7], color="white", markeredgecolor="black", markersize=10)
            box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            axes.annotate(name, place, xytext=(9, 9), textcoords="offset points", fontsize=9, bbox=box)
        axes.figure.colorbar(filled, ax=axes, label=measure)
        axes.set(xlabel="first direction", ylabel="second direction", title=title)
        axes.margins(0.05)
    rows = [(u, v, grid[j, i], "") for j, v in enumerate(y) for i, u in enumerate(x)]
    write_csv(path, ["x", "y", measure, "network"], [*rows, *((*place, "", name) for name, place in networks.items())])
    return described(path, f"{measure} on the plane through {', '.join(networks)}", title)


def _fractions(row: Any) -> dict[str, float]:
    """Column -> fraction of one row."""
    if isinstance(row, Overlap):
        return {"overlap": row.iou, "chance": row.chance}
    if isinstance(row, Mapping):
        return {column: cell.iou if isinstance(cell, Overlap) else cell for column, cell in row.items()}
    return {str(part): overlap.iou for part, overlap in enumerate(row)}
