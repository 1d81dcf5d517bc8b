"""The table of a transfer ladder: means, paired intervals, the share of the gap that a row closes; picture and page."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import mean_and_std
from ladder_cells import Cell, Ladder
from scipy import stats

from hf_lottery import Picture, Section, Table, markdown_table, write_report
from hf_lottery.report.style import picture, write_csv
from hf_lottery.staging import write_atomically

HEADER = (
    "row", "measure", "minus naive, 95 %", "gap closed", "barrier", "overlap (chance)", "correlation", "kept signs",
    "CPU s", "with what it needs",
)  # fmt: skip

DIAGNOSTICS = ("overlap", "chance", "correlation", "kept_signs", "sparsity")


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval of paired differences."""
    error = stats.sem(differences)
    return float(differences.mean()), float(error * stats.t.ppf(0.975, len(differences) - 1))


def gap_closed(row: np.ndarray, naive: np.ndarray, lth: np.ndarray) -> float | None:
    """The mean gain over naive as a share of the ticket's own, or None where the ticket's own is not told from 0."""
    mean, half = interval(lth - naive)
    return None if abs(mean) <= half else float((row - naive).mean() / mean)


def about() -> dict[str, Any]:
    """What the numbers were obtained with."""
    git = shutil.which("git")
    head = [git, "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip() if git else ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    flags = re.sub(r"--output_dir[ =]\S+ ?", "", " ".join(sys.argv[1:])).strip()  # where is nobody else's concern
    return {
        "command": f"recipes/transfer_ladder.py {flags}", "date": time.strftime("%Y-%m-%d"), "commit": commit,
        "device": device, "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


class LadderTable:
    """The results of a finished ladder.

    Args:
        ladder: All of whose cells have results.
    """

    def __init__(self, ladder: Ladder):
        self.ladder, self.seeds = ladder, ladder.which.seeds
        self.found: dict[Cell, dict[str, Any]] = {cell: ladder.result(cell) or {} for cell in ladder.cells}
        self.is_loss = ladder.model_args.task == "causal-lm"
        self.scale = 1.0 if self.is_loss else 100.0
        self.word = "loss" if self.is_loss else "accuracy"

    def values(self, row: str, name: str = "measure") -> np.ndarray:
        """A result of a row for every target, in the order of the seeds; NaN where there is none."""
        return np.array([self.found[Cell(row, seed)].get(name, np.nan) for seed in self.seeds], dtype=float)

    def summary(self) -> dict[str, dict[str, Any]]:
        """The numbers of the table by row, accuracies in percent."""
        naive, lth = (self.scale * self.values(row) for row in ("naive", "lth"))
        rows = {}
        for row in self.ladder.which.rows:
            values = self.scale * self.values(row)
            mean, half = interval(values - naive)
            rows[row] = {
                self.word: values.tolist(), "minus_naive": mean, "half_width": half,
                "gap_closed": gap_closed(values, naive, lth), "barrier": self.scale * self.mean(row, "barrier"),
                **{name: self.mean(row, name) for name in DIAGNOSTICS},
                "cpu_seconds": self.mean(row, "cpu_seconds"), "with_needs": self.cost(row),
            }  # fmt: skip
        return rows

    def mean(self, row: str, name: str) -> float:
        """The mean over the targets."""
        return float(self.values(row, name).mean())

    def cost(self, row: str) -> float:
        """CPU seconds of a row and of all cells that it needs, mean over the targets."""
        total = 0.0
        for seed in self.seeds:
            needed, stack = set(), [Cell(row, seed)]
            while stack:
                cell = stack.pop()
                needed.add(cell)
                stack += self.ladder.needs(cell)
            total += sum(self.found[cell]["cpu_seconds"] for cell in needed)
        return total / len(self.seeds)

    def table(self) -> Table:
        """The table as text."""
        rows = []
        for row, found in self.summary().items():
            closed, digits = found["gap_closed"], 4 if self.is_loss else 2
            overlap = _number(found["overlap"], 3, f" ({found['chance']:.3f})")
            paired = "-" if row == "naive" else f"{found['minus_naive']:+.{digits}f} ± {found['half_width']:.{digits}f}"
            rows.append((
                row, mean_and_std(np.array(found[self.word])), paired,
                "-" if closed is None or row == "naive" else f"{100 * closed:.0f} %",
                _number(found["barrier"], 2), overlap, _number(found["correlation"], 2),
                _number(found["kept_signs"], 3), f"{found['cpu_seconds']:.0f}", f"{found['with_needs']:.0f}",
            ))  # fmt: skip
        return Table([self.word if name == "measure" else name for name in HEADER], rows)

    def write(self) -> str:
        """Write ``ladder.json``, the picture and the page; return the table as Markdown."""
        folder, summary = self.ladder.folder, self.summary()
        rows = {row: {key: _json(value) for key, value in found.items()} for row, found in summary.items()}
        content = json.dumps({"about": about(), "seeds": self.seeds, "rows": rows}, indent=1)
        write_atomically(folder / "ladder.json", (content + "\n").encode())
        self.plot(folder / "ladder.png", summary)
        sparsity = summary["naive"]["sparsity"]
        title = f"Transfer ladder, {100 * sparsity:.1f} % sparse, {len(self.seeds)} seeds"
        caption = "Difference to the mask as it was found, paired by target; bars are 95 % intervals."
        section = Section("Rows", caption, self.table(), Picture(folder / "ladder.png", caption))
        write_report(folder / "report.html", [section], title=title)
        return markdown_table(*self.table())

    def plot(self, path: Path, summary: Mapping[str, Mapping[str, Any]]) -> None:
        """The paired differences to naive with their intervals."""
        rows = [row for row in summary if row != "naive"][::-1]
        points = [(row, summary[row]["minus_naive"], summary[row]["half_width"]) for row in rows]
        with picture(path, 7, 0.6 + 0.32 * len(rows)) as axes:
            axes.axvline(0, color="grey", linewidth=0.8)
            axes.errorbar([p[1] for p in points], range(len(rows)), xerr=[p[2] for p in points], fmt="o", capsize=3)
            axes.set_yticks(range(len(rows)), rows)
            axes.set_xlabel(f"{self.word} minus naive{'' if self.is_loss else ', points'}")
        write_csv(path.with_suffix(".csv"), ["row", "minus_naive", "half_width"], points)


def _json(value: Any) -> Any:
    """The value as JSON knows it, which has no NaN."""
    return None if isinstance(value, float) and np.isnan(value) else value


def _number(value: float, digits: int, after: str = "") -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}{after}"
