"""Maps: numbers over two axes, as colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .style import check_filled, picture, write_csv

_MOST_NUMBERS = 12  # columns, beyond which cells have no room for a number


def plot_overlap(
    path: str | Path, values: Mapping[str, Mapping[str, float]], *, measure: str = "overlap", title: str
) -> None:
    """Draw a heat map of fractions, such as the overlap of masks, layer by layer.

    Args:
        path: The PNG to write; the numbers go beside it as CSV.
        values: Row (a layer) -> {column (a pair of masks, or a head): fraction in [0, 1]}. A column that a row lacks is
            left grey.
        measure: Name of the fraction.
        title: Title of the picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    import numpy as np

    check_filled("values", values)
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    grid = np.array([[row.get(column, np.nan) for column in columns] for row in values.values()], dtype=float)
    longest = max(map(len, columns))
    with picture(path, min(4 + 0.8 * len(columns), 16), min(0.3 * len(values), 100) + 1.4 + 0.06 * longest) as axes:
        axes.set_facecolor("0.8")
        image = axes.imshow(np.ma.masked_invalid(grid), cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=30, ha="right")
        axes.set_yticks(range(len(values)), list(values), fontsize=7)
        axes.set_title(title)
        axes.figure.colorbar(image, ax=axes, label=measure)
        for (i, j), value in np.ndenumerate(grid):
            if len(columns) <= _MOST_NUMBERS and np.isfinite(value):
                color = "black" if value > 0.45 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    rows = ((name, column, value) for name, row in values.items() for column, value in row.items())
    write_csv(path, ["row", "column", measure], rows)


def plot_plane(
    path: str | Path,
    x: Sequence[float],
    y: Sequence[float],
    values: Sequence[Sequence[float]],
    *,
    networks: Mapping[str, tuple[float, float]],
    measure: str = "loss",
    title: str,
) -> None:
    """Draw the loss on a plane through networks.

    Args:
        path: The PNG to write; the numbers go beside it as CSV, with a row for each network.
        x: Coordinates along the first direction, at least two.
        y: Coordinates along the second.
        values: One row for each ``y`` of one number for each ``x``; what is not finite is left grey.
        networks: Label -> where it lies, ``(x, y)``.
        measure: Name of the numbers.
        title: Title of the picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The numbers are not of that shape, or none is finite.
    """
    import numpy as np

    grid = np.asarray(values, dtype=float)
    if grid.shape != (len(y), len(x)) or min(grid.shape) < 2:
        raise ValueError(
            f"values must have a row for each y and a column for each x, 2 at least; received shape {grid.shape} for "
            f"{len(y)} and {len(x)}."
        )
    if not np.isfinite(grid).any():
        raise ValueError("values must be finite somewhere; received none that is. Evaluate nearer to the networks.")
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
