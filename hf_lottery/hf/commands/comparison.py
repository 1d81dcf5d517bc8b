"""The comparison at the end of a search: dense, ticket, random mask and re-initialised, over several trainings each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...report import Table
from ..ladder.paired import interval
from ..tasks.data import Data
from ..tasks.models import ModelArguments
from ..trainers.garbage import frozen_collector
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.run_lock import locked_folder
from ..trainers.run_settings import level_seed
from ..trainers.sparse_trainer import changed
from .controls import STARTS, KeptResults, train_start
from .report_sections import measure_of


class _Words(NamedTuple):
    row: str
    text: str


_WORDS = {
    "dense": _Words("dense", "the dense network"),
    "ticket": _Words("ticket", "the ticket"),
    "shuffled": _Words("random mask", "a random mask"),
    "reinit": _Words("re-initialised", "a new initialization"),
}


@dataclass(frozen=True)
class Comparison:
    """The results of networks that were trained equally long, several times each.

    Attributes:
        measure: "accuracy" or "loss".
        sparsity: The sparsity of all networks but the dense one.
        values: Row -> measure of every training, shape [trainings]. The trainings of one column of all rows share the
            seed of their data order.
    """

    measure: str
    sparsity: float
    values: dict[str, np.ndarray]

    @property
    def table(self) -> Table:
        """A row for each network: the mean with its 95 % interval, and the paired difference to the ticket."""
        rows = []
        for name, values in self.values.items():
            difference = "" if name == "ticket" else self._show(*self._lead(name), sign="+")
            rows.append([_WORDS[name].row, self._show(*interval(values)), difference])
        unit = " in %" if self._in_percent else ""
        return Table([f"at {100 * self.sparsity:.2f} % sparsity", f"{self.measure}{unit}", "ticket minus it"], rows)

    @property
    def conclusion(self) -> str:
        """What the table shows, in words; a difference whose interval holds 0 is not called one."""
        found: dict[str, list[str]] = {"better": [], "worse": [], "equal": []}
        for name in [name for name in self.values if name != "ticket"]:
            mean, half = self._lead(name)
            ahead = "better" if (mean > 0) == self._in_percent else "worse"
            apart = abs(mean) > half > 0  # of few trainings with equal counts the interval has no width
            found[ahead if apart else "equal"].append(_WORDS[name].text)
        text = {kind: _listed(names) for kind, names in found.items() if names}
        equal = text.pop("equal", "")
        unequal = " and ".join(f"{kind} than {names}" for kind, names in text.items())
        if not unequal:
            return f"After as many steps, the ticket cannot be told from {equal}."
        rest = f"\nIt cannot be told from {equal}." if equal else ""
        return f"After as many steps, the ticket is {unequal}.{rest}"

    @property
    def explanation(self) -> str:
        """What was trained, and what the intervals cover."""
        count = len(next(iter(self.values.values())))
        return (
            f"Means and 95 % intervals over {count} trainings of each, with other data orders, masks and "
            "initializations.\nThey do not cover other test data, nor the ticket of another search."
        )

    @property
    def for_ticket(self) -> dict[str, Any]:
        """The comparison in JSON terms, for the info of the ticket and its card."""
        header, rows = self.table
        return {
            "header": list(header),
            "rows": [list(row) for row in rows],
            "text": f"{self.conclusion}\n{self.explanation}",
            "measure": self.measure,
            "values": {name: values.tolist() for name, values in self.values.items()},
        }

    @property
    def _in_percent(self) -> bool:
        """Whether the measure is the accuracy, of which more is better."""
        return self.measure == "accuracy"

    def _lead(self, name: str) -> tuple[float, float]:
        return interval(self.values["ticket"] - self.values[name])

    def _show(self, mean: float, half: float, *, sign: str = "") -> str:
        if self._in_percent:
            return f"{100 * mean:{sign}.1f} ± {100 * half:.1f}"
        return f"{mean:{sign}.4f} ± {half:.4f}"


def _listed(names: list[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def check_comparison(trainer: LotteryTrainer) -> None:
    """Check that the ticket of a search can be compared with networks that were trained equally long.

    Args:
        trainer: The trainer of the search.

    Raises:
        ValueError: Its levels keep their weights.
    """
    if trainer.rewind_point.keeps_weights:
        raise ValueError(
            "compare must come with a search that rewinds the weights, so that all networks train equally long; "
            f"received rewind={trainer.rewind_point}. Use train_ticket or a transfer ladder."
        )


def compare(trainings: int, trainer: LotteryTrainer, model_args: ModelArguments, data: Data) -> Comparison:
    """Train the ticket of a search and its controls several times; results are kept in ``comparison.json``.

    Args:
        trainings: How many trainings of each, 2 or more. Those that have results already are not repeated.
        trainer: The trainer of the finished search.
        model_args: The network.
        data: What it trains on.

    Raises:
        RuntimeError: Another process uses the search's folder.
    """
    last = trainer.history[-1]
    with locked_folder(str(trainer.args.output_dir), main=trainer.is_world_process_zero()), frozen_collector():
        results = KeptResults(trainer, "comparison.json")
        for number in range(trainings):
            seed = level_seed(trainer.args.seed, last["level"], number, *b"compare")
            for name in STARTS:
                if (key := f"{number}:{name}") in results.values:
                    continue
                title = f"training {number + 1}/{trainings}, {_WORDS[name].row}"
                with changed(trainer.args, seed=seed, data_seed=None):  # every training has its own data order
                    results.add(
                        key, train_start(name, last["level"], trainer, model_args, data, seed=seed, title=title)
                    )
    measure = measure_of(last["metrics"])
    values = {
        name: np.array([results.values[f"{number}:{name}"][measure] for number in range(trainings)]) for name in STARTS
    }
    return Comparison(measure.removeprefix("eval_"), last["sparsity"], values)
