"""The pilot of a ladder: on networks of their own, find how long to train and at which sparsity masks differ.

A mask can only be seen to transfer where the target's own ticket does better than the source's mask as it is, and two
networks can only be aligned once they have converged. So the pilot doubles the epochs of dense training until that no
longer helps. Then it scans levels of one search for the sparsity with the largest difference between ``lth`` and
``naive``. The ladder uses both on fresh seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...report import Table
from ...storage.atomic import write_atomically
from .cells import Cell, Ladder
from .paired import interval
from .sweep import points

_DOUBLINGS = 3
Run = Callable[[Sequence[str]], Any]  # computes every cell that a command line asks for


def settle(command: Sequence[str], run: Run) -> tuple[list[str], dict[str, Any]]:
    """Choose epochs and sparsity, and return the command line of the ladder with what the pilot measured.

    Args:
        command: The command line, with ``--scan``.
        run: Computes the cells of a command line.

    Raises:
        ValueError: At no scanned sparsity is ``lth`` above ``naive`` without losing too much to the dense network. Or a
            seed of the pilot is one of the ladder.
    """
    ladder = Ladder.of(command)
    if shared := {*ladder.which.pilot_seeds} & {*ladder.which.seeds}:
        raise ValueError(f"pilot_seeds must be other seeds than those of the ladder; received {min(shared)} in both.")
    seeds = [str(seed) for seed in ladder.which.pilot_seeds]
    # Without the flag that asks for this pilot; in a file, sparsities take its place.
    base = [*without(command, "--scan"), "--seeds", *seeds, "--targets", *seeds]
    base += ["--pairs", "dense-dense"]  # the pairs asked for would need their rows
    epochs, lengths = _epochs(base, ladder, run)
    chosen = ["--num_train_epochs", f"{epochs:g}"]
    scanned = _scan([*base, *chosen], ladder, run)
    best = _best(scanned, ladder.which.max_loss)
    found = {"seeds": ladder.which.pilot_seeds, "epochs": epochs, "dense": lengths, "scan": scanned, "sparsity": best}
    write_atomically(ladder.folder / "pilot.json", (json.dumps(found, indent=1) + "\n").encode())
    if best is None:
        tried = ", ".join(f"{one['sparsity']:.3f}" for one in scanned)
        raise ValueError(
            f"lth must be above naive at a scanned sparsity; received {tried}, where it is not, or loses too much to "
            "dense. Scan others, or raise max_loss; pilot.json has the numbers."
        )
    return [*without(command, "--scan"), *chosen, "--sparsities", repr(best)], found


def without(command: Sequence[str], flag: str) -> list[str]:
    """Leave a flag and its values out of a command line."""
    kept, dropping = [], False
    for word in command:
        if word.startswith("--"):
            dropping = word.split("=")[0] == flag
        if not dropping:
            kept.append(word)
    return kept


def _epochs(base: Sequence[str], ladder: Ladder, run: Run) -> tuple[float, list[list[Any]]]:
    """Double the epochs of dense training until that gains too little to count."""
    epochs, measured = ladder.args.num_train_epochs, []
    most = repr(max(ladder.which.scan or [0.5]))  # a dense network has none, but scan must not be asked for again
    for _ in range(_DOUBLINGS + 1):
        command = [*base, "--rows", "dense", "--num_train_epochs", f"{epochs:g}", "--sparsities", most]
        run(command)
        values = _values(Ladder.of(command), "dense")
        measured.append([epochs, values.tolist()])
        if len(measured) > 1 and ladder.gain(values, np.array(measured[-2][1])).mean() < ladder.which.converged_within:
            return measured[-2][0], measured
        epochs *= 2
    return measured[-1][0], measured


def _scan(base: Sequence[str], ladder: Ladder, run: Run) -> list[dict[str, Any]]:
    """Measure lth and naive at every scanned sparsity."""
    sparsities = [f"{value:g}" for value in ladder.which.scan or []]
    command = [*base, "--rows", "dense", "lth", "naive", "--sparsities", *sparsities]
    run(command)
    found = []
    for point in points(command):
        values = {row: _values(point.ladder, row) for row in ("dense", "lth", "naive")}
        gap, half = interval(ladder.gain(values["lth"], values["naive"]), ring=True)
        loss = float(ladder.gain(values["dense"], values["lth"]).mean())
        sparsity = point.ladder.args.get_sparsities()[point.ladder.level]
        means = {row: float(value.mean()) for row, value in values.items()}
        found.append({"sparsity": sparsity, **means, "gap": gap, "half_width": half, "loss": loss})
    return found


def _best(scanned: Sequence[dict[str, Any]], max_loss: float) -> float | None:
    kept = [one for one in scanned if one["loss"] <= max_loss and one["gap"] > 0]
    return max(kept, key=lambda one: one["gap"])["sparsity"] if kept else None


def _values(ladder: Ladder, row: str) -> np.ndarray:
    return np.array([(ladder.result(Cell(row, seed)) or {})["measure"] for seed in ladder.targets])


def pilot_tables(pilot: dict[str, Any]) -> list[Table]:
    """Make tables of what a pilot measured.

    Args:
        pilot: What :func:`settle` returned.
    """
    lengths = [
        [f"{epochs:g}", f"{np.mean(values):.4f}", "used" if epochs == pilot["epochs"] else ""]
        for epochs, values in pilot["dense"]
    ]
    scan = [
        [
            f"{one['sparsity']:.3f}",
            *(f"{one[row]:.4f}" for row in ("dense", "lth", "naive")),
            f"{one['gap']:+.4f} ± {one['half_width']:.4f}",
            "used" if one["sparsity"] == pilot["sparsity"] else "",
        ]
        for one in pilot["scan"]
    ]
    return [
        Table(["epochs", "dense", ""], lengths),
        Table(["sparsity", "dense", "lth", "naive", "lth - naive, 95 %", ""], scan),
    ]
