"""The levels of a search before it begins: the sparsity and the training steps of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.sparse_trainer import changed


@dataclass(frozen=True)
class LevelPlan:
    """The plan of one level.

    Attributes:
        number: Number of the level; 0 is dense.
        sparsity: Sparsity of the level's mask, in [0, 1].
        steps: Optimizer steps; all processes take them together.
        steps_per_epoch: Optimizer steps of an epoch; None if the data set does not know its length.
        final_run: Whether this is the training after the search.
    """

    number: int
    sparsity: float
    steps: int
    steps_per_epoch: int | None
    final_run: bool = False

    def checkpoint_steps(self, args: Any) -> list[int]:
        """Return the steps that end with a checkpoint, in order; ``save_strategy="best"`` saves some of them only."""
        strategy = {"best": args.eval_strategy}.get(args.save_strategy, args.save_strategy)
        every = args.eval_steps if args.save_strategy == "best" else args.save_steps
        return self._moments(strategy, every, at_end=True)

    def log_steps(self, args: Any) -> list[int]:
        """Return the steps after which the Trainer logs its loss."""
        return self._moments(args.logging_strategy, args.logging_steps, at_end=False)

    def evaluation_steps(self, args: Any) -> list[int]:
        """Return the steps of a training after which the Trainer evaluates."""
        return self._moments(args.eval_strategy, args.eval_steps, at_end=True)

    def _moments(self, strategy: str, every: float | None, *, at_end: bool) -> list[int]:
        if strategy == "epoch":  # an epoch that is cut short counts too
            every, at_end = self.steps_per_epoch or self.steps, True
        if strategy not in ("epoch", "steps") or not every:
            return []
        # The Trainer reads a number below one as a share of the steps.
        interval = math.ceil(self.steps * every) if every < 1 else int(every)
        moments = list(range(interval, self.steps + 1, interval))
        return [*moments, self.steps] if at_end and self.steps % interval else moments


def plan_levels(trainer: LotteryTrainer) -> tuple[LevelPlan, ...]:
    """Plan the levels of ``trainer.train()``.

    Raises:
        ValueError: The rewind step lies beyond training.
    """
    moment, last = trainer.rewind_step(), len(trainer.sparsities) - 1
    counted: dict[int, tuple[int | None, int]] = {}
    for kind in {0, min(1, last), last}:  # the first, the last, and all others alike
        with changed(trainer.args, **trainer.level_arguments(kind)):
            counted[kind] = trainer.count_steps()
    levels = []
    for number, sparsity in enumerate(trainer.sparsities):
        per_epoch, steps = counted[number if number in (0, last) else 1]
        steps -= moment if number else 0  # later levels start at the rewind point
        levels.append(LevelPlan(number, sparsity, steps, per_epoch, trainer.is_final_run(number)))
    return tuple(levels)
