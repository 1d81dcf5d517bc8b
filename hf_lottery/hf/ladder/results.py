"""The numbers of a finished ladder: means, paired intervals, the share of the gap that a row closes, and costs."""

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

from ...storage.atomic import write_atomically
from ...version import __version__
from .cells import Cell, Ladder
from .paired import gap_closed, interval
from .rows import SEARCHES
from .sweep import Point

LEAST_GAP = 3.0  # points of accuracy between lth and naive, below which a ladder says nothing about masks
DIAGNOSTICS = (
    "overlap",
    "chance",
    "correlation",
    "kept_signs",
    "sparsity",
    "unit_sparsity",
    "match_seconds",
    "cpu_seconds",
    "seconds",
)


def about(point: Point) -> dict[str, Any]:
    """Return what the numbers were obtained with: command, code, device and versions."""
    script = Path(sys.argv[0]).name
    script = f"recipes/{script}" if script == "transfer_ladder.py" else "hf-lottery"  # its flags begin with `ladder`
    flags = re.sub(r"--output_dir[ =]\S+ ?", "", " ".join(sys.argv[1:])).strip()  # a private path helps nobody
    return {
        "command": f"{script} {flags}".strip(), "point": point.name, "date": time.strftime("%Y-%m-%d"),
        "commit": commit(Path(__file__)), "version": __version__, "device": _device(),
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def commit(file: Path) -> str | None:
    """Return the commit of the repository that holds a file.

    Args:
        file: A source file.

    Returns:
        The short hash; None without git, and for a file that no repository tracks, such as one of an installed package.
    """
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*question: str) -> str | None:
        answer = subprocess.run([git, "-C", str(file.parent), *question], capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else None

    # An environment may lie inside a repository that does not track it.
    return ask("rev-parse", "--short", "HEAD") if ask("ls-files", "--error-unmatch", file.name) else None


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}"


class LadderResults:
    """The results of a finished ladder.

    Args:
        ladder: A ladder whose cells all have results.
    """

    def __init__(self, ladder: Ladder):
        self.ladder, self.seeds = ladder, ladder.targets
        self.found: dict[Cell, dict[str, Any]] = {cell: ladder.result(cell) or {} for cell in ladder.cells}
        self.measure = ladder.measure
        self.scale = 1.0 if self.measure == "loss" else 100.0

    def values(self, row: str, name: str = "measure") -> np.ndarray:
        """Return a result of a row for every target, in the order of the seeds; NaN where there is none."""
        return np.array([self.found[Cell(row, seed)].get(name, np.nan) for seed in self.seeds], dtype=float)

    def mean(self, row: str, name: str) -> float | None:
        """Return the mean over the targets; None if a target has no such result."""
        mean = float(self.values(row, name).mean())
        return None if np.isnan(mean) else mean

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the numbers of the table by row, accuracies and barriers in percent."""
        rows = {}
        for row in self.ladder.which.rows:
            values = self.scale * self.values(row)
            rows[row] = {
                "values": values.tolist(), **self._against_naive(values), "barrier": self._scaled(row, "barrier"),
                "dense_barrier": self._scaled(row, "dense_barrier"),
                **{name: self.mean(row, name) for name in DIAGNOSTICS},
                "cpu_with_needs": self.cost(row, "cpu_seconds"), "with_needs": self.cost(row, "seconds"),
                "initial_norms": self._scaled(f"search_{row}", "initial_norms") if row in SEARCHES else None,
                "match": self.match(row),
            }  # fmt: skip
        return rows

    def _against_naive(self, values: np.ndarray) -> dict[str, Any]:
        """Compare a row to the source's mask as it is, and to the target's own ticket."""
        if "naive" not in self.ladder.which.rows:
            return {"minus_naive": None, "half_width": None, "gap_closed": None}
        naive, lth = (self.scale * self.values(row) for row in ("naive", "lth"))
        mean, half = interval(values - naive, ring=self.ladder.ring)
        closed = gap_closed(values, naive, lth, ring=self.ladder.ring) if self.informative() else None
        return {"minus_naive": mean, "half_width": half, "gap_closed": closed}

    def informative(self) -> bool | None:
        """Tell whether masks differ enough for a conclusion about their transfer; None without lth and naive.

        ``lth`` must be better than ``naive`` by twice the half-width of its interval, accuracies by 3 points too.
        """
        if "naive" not in self.ladder.which.rows:
            return None
        gap = self.scale * self.ladder.gain(self.values("lth"), self.values("naive"))
        mean, half = interval(gap, ring=self.ladder.ring)
        return mean >= max(2 * half, 0.0 if self.measure == "loss" else LEAST_GAP)

    def _scaled(self, row: str, name: str) -> float | None:
        mean = self.mean(row, name)
        return None if mean is None else self.scale * mean

    def norm_paths(self) -> dict[str, list[list[float]]]:
        """Return search -> its norm path, pairs of alpha and measure, mean over the networks."""
        paths: dict[str, list[Any]] = {}
        for cell, found in self.found.items():
            if "norm_path" in found:
                paths.setdefault(cell.kind.removeprefix("search_"), []).append(found["norm_path"])
        return {search: np.mean(found, axis=0).tolist() for search, found in paths.items()}

    def match(self, row: str) -> dict[str, list[float]] | None:
        """Return group -> similarity of its units as they were and as matched, mean over the targets.

        None if the row was not aligned, or by a version that did not keep this.
        """
        found = [self.found[Cell(row, seed)].get("match", {}) for seed in self.seeds]
        if {} in found:
            return None
        return {group: np.mean([match[group] for match in found], axis=0).tolist() for group in found[0]}

    def cost(self, row: str, name: str) -> float:
        """Return the seconds of a row and of all cells that it needs, mean over the targets."""
        total = 0.0
        for seed in self.seeds:
            needed, stack = set(), [Cell(row, seed)]
            while stack:
                cell = stack.pop()
                needed.add(cell)
                stack += self.ladder.needs(cell)
            total += sum(self.found[cell][name] for cell in needed)
        return total / len(self.seeds)


def write_results(point: Point, pilot: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the results of a ladder as JSON to its folder.

    Args:
        point: A ladder whose cells all have results.
        pilot: What its pilot measured.

    Returns:
        What was written.
    """
    ladder = point.ladder
    found = LadderResults(ladder)
    network, data = ladder.model_args.load_config().model_type, ladder.data_args.dataset_name
    results = {
        "title": ladder.which.title or f"{network} on {data}", "about": about(point), "measure": found.measure,
        "seconds": "GPU" if torch.cuda.is_available() else "CPU", "seeds": list(found.seeds), "ring": ladder.ring,
        "rows": found.rows(),
        "pairs": ladder.which.pairs or [], "informative": found.informative(), "pilot": pilot,
        "paths": found.norm_paths(),
    }  # fmt: skip
    write_atomically(ladder.folder / f"{point.stem}.json", (json.dumps(results, indent=1) + "\n").encode())
    return results
