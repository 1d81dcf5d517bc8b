"""The numbers of a finished ladder: means, paired intervals, the share of the gap that a row closes, costs."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats

from ...storage.atomic import write_atomically
from .cells import Cell, Ladder
from .sweep import Point

DIAGNOSTICS = ("overlap", "chance", "correlation", "kept_signs", "sparsity", "cpu_seconds", "seconds")


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval of paired differences."""
    error = stats.sem(differences)
    return float(differences.mean()), float(error * stats.t.ppf(0.975, len(differences) - 1))


def gap_closed(row: np.ndarray, naive: np.ndarray, lth: np.ndarray) -> tuple[float, float, float] | None:
    """The mean gain over naive as a share of the ticket's own, with its 95 % interval (Fieller).

    Args:
        row: The measure of a row for every target, shape [seeds].
        naive: That of the mask as it was found.
        lth: That of the target's own ticket.

    Returns:
        The share and the ends of its interval, or None where the ticket's own gain is not told from 0.

    References:
        Fieller, 1954, "Some Problems in Interval Estimation".
    """
    gain, whole = row - naive, lth - naive
    count = len(gain)
    t = stats.t.ppf(0.975, count - 1)
    (var_gain, both), (_, var_whole) = t**2 * np.cov(gain, whole) / count
    x, y = gain.mean(), whole.mean()
    a, b, c = y**2 - var_whole, x * y - both, x**2 - var_gain
    if a <= 0:
        return None
    root = max(b**2 - a * c, 0.0) ** 0.5
    return float(x / y), float((b - root) / a), float((b + root) / a)


def about(point: Point) -> dict[str, Any]:
    """What the numbers were obtained with."""
    git = shutil.which("git")
    head = [git, "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip() if git else ""
    flags = re.sub(r"--output_dir[ =]\S+ ?", "", " ".join(sys.argv[1:])).strip()  # where is nobody else's concern
    return {
        "command": f"recipes/transfer_ladder.py {flags}", "point": point.name, "date": time.strftime("%Y-%m-%d"),
        "commit": commit, "device": _device(), "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}"


class LadderResults:
    """The results of a finished ladder.

    Args:
        ladder: All of whose cells have results.
    """

    def __init__(self, ladder: Ladder):
        self.ladder, self.seeds = ladder, ladder.which.seeds
        self.found: dict[Cell, dict[str, Any]] = {cell: ladder.result(cell) or {} for cell in ladder.cells}
        is_loss = ladder.model_args.task == "causal-lm"
        self.scale, self.measure = (1.0, "loss") if is_loss else (100.0, "accuracy")

    def values(self, row: str, name: str = "measure") -> np.ndarray:
        """A result of a row for every target, in the order of the seeds; NaN where there is none."""
        return np.array([self.found[Cell(row, seed)].get(name, np.nan) for seed in self.seeds], dtype=float)

    def mean(self, row: str, name: str) -> float | None:
        """The mean over the targets, or None where there is none."""
        mean = float(self.values(row, name).mean())
        return None if np.isnan(mean) else mean

    def rows(self) -> dict[str, dict[str, Any]]:
        """The numbers of the table by row, accuracies and barriers in percent."""
        naive, lth = (self.scale * self.values(row) for row in ("naive", "lth"))
        rows = {}
        for row in self.ladder.which.rows:
            values = self.scale * self.values(row)
            mean, half = interval(values - naive)
            barrier = self.mean(row, "barrier")
            rows[row] = {
                "values": values.tolist(), "minus_naive": mean, "half_width": half,
                "gap_closed": gap_closed(values, naive, lth),
                "barrier": None if barrier is None else self.scale * barrier,
                **{name: self.mean(row, name) for name in DIAGNOSTICS},
                "cpu_with_needs": self.cost(row, "cpu_seconds"), "with_needs": self.cost(row, "seconds"),
            }  # fmt: skip
        return rows

    def cost(self, row: str, name: str) -> float:
        """Seconds of a row and of all cells that it needs, mean over the targets."""
        total = 0.0
        for seed in self.seeds:
            needed, stack = set(), [Cell(row, seed)]
            while stack:
                cell = stack.pop()
                needed.add(cell)
                stack += self.ladder.needs(cell)
            total += sum(self.found[cell][name] for cell in needed)
        return total / len(self.seeds)


def write_results(point: Point) -> dict[str, Any]:
    """The results of a ladder, written as JSON to its folder."""
    ladder = point.ladder
    found = LadderResults(ladder)
    network, data = ladder.model_args.load_config().model_type, ladder.data_args.dataset_name
    results = {
        "title": ladder.which.title or f"{network} on {data}", "about": about(point), "measure": found.measure,
        "seconds": "GPU" if torch.cuda.is_available() else "CPU", "seeds": found.seeds, "rows": found.rows(),
    }  # fmt: skip
    write_atomically(ladder.folder / f"{point.stem}.json", (json.dumps(results, indent=1) + "\n").encode())
    return results
