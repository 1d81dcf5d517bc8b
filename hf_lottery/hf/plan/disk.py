"""What a search will leave on disk, and the most it takes meanwhile: its files as they will come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .levels import LevelPlan
from .optimizer import OptimizerPlan
from .sizes import (
    mask_files,
    model_files,
    resumable_files,
    signed_files,
    start_file,
    state_file,
    ticket_files,
    trainer_state_file,
)


@dataclass
class DiskPlan:
    """Bytes of ``output_dir``, a file with several names once, as ``du --apparent-size`` counts files.

    Attributes:
        parts: What is left at the end -> its bytes.
        peak: The most there is at any moment of the run.
    """

    parts: dict[str, int] = field(default_factory=dict)
    peak: int = 0

    @property
    def total(self) -> int:
        """What is left at the end."""
        return sum(self.parts.values())

    def add(self, part: str, size: int) -> None:
        """Count what is written next, or with a negative size, deleted."""
        self.parts[part] = self.parts.get(part, 0) + size
        self.peak = max(self.peak, self.total)


def plan_disk(
    trainer: LotteryTrainer, levels: Sequence[LevelPlan], optimizer: OptimizerPlan, others: Mapping[str, int]
) -> DiskPlan:
    """Go through a search as it will write and delete its files.

    Args:
        trainer: Of the search.
        levels: Its levels.
        optimizer: What its optimizer keeps, and so a checkpoint.
        others: What else will lie in ``output_dir`` at the end -> its bytes.
    """
    plan, start = DiskPlan(), start_file(trainer)
    plan.add("state", state_file(trainer))
    plan.add("masks", mask_files(trainer))
    plan.add("starting weights", start * (2 if trainer.rewind_step() else 1))  # of level 0, and the moment to rewind to
    _add_levels(plan, trainer, levels, optimizer)
    plan.add("ticket", ticket_files(trainer) + (0 if trainer.lottery.rewind_by_reference else start))
    if isinstance(trainer, WinningSignTrainer):
        plan.add("signed mask", signed_files(trainer))
    for part, size in others.items():
        plan.add(part, size)
    return plan


def _add_levels(plan: DiskPlan, trainer: LotteryTrainer, levels: Sequence[LevelPlan], optimizer: OptimizerPlan) -> None:
    """Count what every level leaves: checkpoints, a trained model, and what the next one starts from."""
    mask, model, resumable = mask_files(trainer), model_files(trainer), resumable_files(trainer, optimizer)
    kept_weights = start_file(trainer) if trainer.rewind_point.keeps_weights else 0  # else a file gets one more name
    before = 0
    for level in levels:
        trained = model + (mask if level.number else 0)  # a level that is held at a mask saves it with the model
        _add_checkpoints(plan, trainer, level, trained + resumable)
        plan.add("trained models", trained)
        if level is not levels[-1]:
            plan.add("masks", mask)
            plan.add("starting weights", kept_weights)
        if not trainer.lottery.save_level_models:
            plan.add("trained models", -before)
        before = trained


def _add_checkpoints(plan: DiskPlan, trainer: LotteryTrainer, level: LevelPlan, size: int) -> None:
    """Count the checkpoints of a level; the oldest goes when one more than may stay is complete."""
    limit, kept = trainer.args.save_total_limit, []
    for step in level.checkpoint_steps(trainer.args):
        kept.append(size + trainer_state_file(trainer, level, step))
        plan.add("checkpoints", kept[-1])
        if limit and limit > 0 and len(kept) > limit:
            plan.add("checkpoints", -kept.pop(0))
