"""Report: numbers -> Markdown and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; an empty string without rows."""
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in [list(header), *rows]) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *rows]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def level_table(history: Sequence[Mapping[str, Any]]) -> str:
    """The levels of a search as a Markdown table.

    Args:
        history: One mapping a level with ``level``, ``sparsity`` and ``metrics`` (accuracy and loss under their
            Trainer names and ``sign_flips``, as far as there are any).
    """
    rows = []
    for record in history:
        metrics = record["metrics"]
        measures = [
            metrics.get("eval_accuracy"),
            metrics.get("eval_loss", metrics.get("train_loss")),
            metrics.get("sign_flips"),
        ]
        numbers = ["-" if value is None else f"{value:.4f}" for value in measures]
        rows.append([str(record["level"]), f"{record['sparsity']:.4f}", *numbers])
    return markdown_table(["level", "sparsity", "accuracy", "loss", "sign flips"], rows)


def plot_against_density(
    path: str | Path, series: Mapping[str, Mapping[float, Sequence[float]]], *, ylabel: str, title: str
) -> None:
    """Draw a measure against the fraction of weights that stays, as a PNG.

    Args:
        path: The file to write.
        series: Label -> {sparsity: values, one a seed}. The line is the mean, the band one standard deviation.
        ylabel: Name of the measure.
        title: Title of the picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import numpy as np
    from matplotlib.figure import Figure  # without pyplot, which would choose a backend for the whole process

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, points in series.items():
        kept = [100 * (1 - sparsity) for sparsity in points]
        mean = np.array([np.mean(values) for values in points.values()])
        spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in points.values()])
        (line,) = axes.plot(kept, mean, marker="o", markersize=3, label=label)
        axes.fill_between(kept, mean - spread, mean + spread, alpha=0.2, color=line.get_color())
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = [tick for tick in (100, 50, 20, 10, 5, 2, 1) if tick >= min(axes.get_xlim())]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="weights that stay (%)", ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_match(path: str | Path, groups: Mapping[str, tuple[float, float]], *, score: str, title: str) -> None:
    """Draw how well the units of two networks go together, group by group, before and after matching, as a PNG.

    Args:
        path: The file to write.
        groups: Group name -> score in the order they had, and as matched.
        score: Name of the score.
        title: Title of the picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.4 * len(groups) + 1.4), layout="constrained")
    axes, place = figure.subplots(), np.arange(len(groups))
    series = zip((-0.2, 0.2), ("as they were", "matched"), zip(*groups.values(), strict=True), strict=True)
    for offset, label, values in series:
        axes.barh(place + offset, values, 0.4, label=label)
    axes.set_yticks(place, list(groups), fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel=score, title=title)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower right", ncols=2)
    figure.savefig(path, dpi=150)
