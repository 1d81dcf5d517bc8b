"""The levels of a search before it begins: how sparse each is, and how many steps it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.sparse_trainer import changed


@dataclass(frozen=True)
class LevelPlan:
    """One level.

    Attributes:
        number: From 0, which is dense.
        sparsity: Of its mask, in [0, 1].
        steps: Optimizer steps, of all processes together.
        steps_per_epoch: None if the data set does not know its length.
        final_run: Whether it is the training after the search.
    """

    number: int
    sparsity: float
    steps: int
    steps_per_epoch: int | None
    final_run: bool = False

    def checkpoint_steps(self, args: Any) -> list[int]:
        """The steps after which a checkpoint is saved, in order; with ``save_strategy="best"``, may be saved."""
        strategy = {"best": args.eval_strategy}.get(args.save_strategy, args.save_strategy)
        every = args.eval_steps if args.save_strategy == "best" else args.save_steps
        return self._moments(strategy, every, at_end=True)

    def log_steps(self, args: Any) -> list[int]:
        """The steps after which the Trainer logs its loss."""
        return self._moments(args.logging_strategy, args.logging_steps, at_end=False)

    def evaluation_steps(self, args: Any) -> list[int]:
        """The steps after which the Trainer evaluates within the training."""
        return self._moments(args.eval_strategy, args.eval_steps, at_end=True)

    def _moments(self, strategy: str, every: float | None, *, at_end: bool) -> list[int]:
        if strategy == "epoch":  # also where a training stops within one
            every, at_end = self.steps_per_epoch or self.steps, True
        if strategy not in ("epoch", "steps") or not every:
            return []
        # The Trainer reads a number below one as a share of the steps.
        interval = math.ceil(self.steps * every) if every < 1 else int(every)
        moments = list(range(interval, self.steps + 1, interval))
        return [*moments, self.steps] if at_end and self.steps % interval else moments


def plan_levels(trainer: LotteryTrainer) -> tuple[LevelPlan, ...]:
    """The levels that ``trainer.train()`` will go through.

    Raises:
        ValueError: The search cannot begin: the rewind step lies beyond training.
    """
    moment, last = trainer.rewind_step(), len(trainer.sparsities) - 1
    counted: dict[int, tuple[int | None, int]] = {}
    for kind in {0, min(1, last), last}:  # a level trains as the first, the last or any other
        with changed(trainer.args, **trainer.level_arguments(kind)):
            counted[kind] = trainer.count_steps()
    levels = []
    for number, sparsity in enumerate(trainer.sparsities):
        per_epoch, steps = counted[number if number in (0, last) else 1]
        steps -= moment if number else 0  # later levels start after the moment they rewind to
        levels.append(LevelPlan(number, sparsity, steps, per_epoch, trainer.is_final_run(number)))
    return tuple(levels)
