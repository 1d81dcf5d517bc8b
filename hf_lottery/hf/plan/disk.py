"""Disk space of a search: its size at the end, and its largest size during the run."""

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
    record_file,
    resumable_files,
    signed_files,
    start_file,
    state_file,
    ticket_files,
    trainer_state_file,
)


@dataclass
class DiskPlan:
    """Bytes of the files in ``output_dir``, as ``du --apparent-size`` counts them: a file with several names once.

    Attributes:
        parts: Kind of file -> bytes that are left at the end.
        peak: The largest size of the folder during the run.
    """

    parts: dict[str, int] = field(default_factory=dict)
    peak: int = 0

    @property
    def total(self) -> int:
        """Bytes that are left at the end."""
        return sum(self.parts.values())

    def add(self, part: str, size: int) -> None:
        """Count the bytes that are written next. A negative size counts bytes that are deleted."""
        self.parts[part] = self.parts.get(part, 0) + size
        self.peak = max(self.peak, self.total)


def plan_disk(
    trainer: LotteryTrainer, levels: Sequence[LevelPlan], optimizer: OptimizerPlan, others: Mapping[str, int]
) -> DiskPlan:
    """Follow the files that a search will write and delete, in order.

    Args:
        trainer: The search's trainer.
        levels: The levels of the search.
        optimizer: The state of the optimizer, which every checkpoint holds.
        others: Name of any other thing that will lie in ``output_dir`` at the end -> its bytes.

    Returns:
        The plan of the disk space.
    """
    plan, start = DiskPlan(), start_file(trainer)
    plan.add("state", state_file(trainer))
    plan.add("masks", mask_files(trainer))
    plan.add("starting weights", record_file(3) + start * (2 if trainer.rewind_step() else 1))  # and the rewind point
    _add_levels(plan, trainer, levels, optimizer)
    plan.add("ticket", ticket_files(trainer))
    if isinstance(trainer, WinningSignTrainer):
        plan.add("signed mask", signed_files(trainer))
    for part, size in others.items():
        plan.add(part, size)
    return plan


def _add_levels(plan: DiskPlan, trainer: LotteryTrainer, levels: Sequence[LevelPlan], optimizer: OptimizerPlan) -> None:
    """Count the checkpoints and the trained model of every level, and the mask and weights that start the next one."""
    mask, model, resumable = mask_files(trainer), model_files(trainer), resumable_files(trainer, optimizer)
    kept_weights = start_file(trainer) if trainer.rewind_point.keeps_weights else 0  # else hard links
    before = 0
    for level in levels:
        # A sparse level saves its mask with the model; beside the trained one it is a hard link.
        checkpoints = _add_checkpoints(plan, trainer, level, model + (mask if level.number else 0) + resumable)
        trained = model + record_file(5)
        plan.add("trained models", trained)
        if level is not levels[-1]:
            plan.add("masks", mask)
            plan.add("starting weights", kept_weights + record_file(3))
        if not trainer.lottery.save_level_models:
            plan.add("trained models", -before)
        if not trainer.lottery.save_level_checkpoints:
            plan.add("checkpoints", -checkpoints)
        before = trained


def _add_checkpoints(plan: DiskPlan, trainer: LotteryTrainer, level: LevelPlan, size: int) -> int:
    """Count the checkpoints of a level, and return the bytes of those that are left when it ends.

    One more than the limit is written before the oldest one is deleted.
    """
    limit, kept = trainer.args.save_total_limit, []
    for step in level.checkpoint_steps(trainer.args):
        kept.append(size + trainer_state_file(trainer, level, step))
        plan.add("checkpoints", kept[-1])
        if limit and limit > 0 and len(kept) > limit:
            plan.add("checkpoints", -kept.pop(0))
    return sum(kept)
