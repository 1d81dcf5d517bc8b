"""plan_search(): find out what a search for a ticket will cost, before any training and without writing files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...report import markdown_table
from ..trainers.lottery_trainer import LotteryTrainer
from .disk import DiskPlan, plan_disk
from .levels import LevelPlan, plan_levels
from .matching import MatchingPlan, plan_matching
from .memory import MemoryPlan, StepCost, measure_step, plan_memory, untouched
from .optimizer import plan_optimizer


@dataclass(frozen=True)
class SearchPlan:
    """The cost of a search. Printing it shows tables.

    Attributes:
        levels: Sparsity and optimizer steps of every level.
        disk: Bytes of ``output_dir``.
        memory: Bytes of a process while it trains.
        seconds: Estimated seconds of all forward and backward passes, without optimizer, evaluation and saving. None if
            no pass was measured.
        matching: The cost of aligning two such networks; None if it was not asked for.
        notes: What the numbers do not include.
    """

    levels: tuple[LevelPlan, ...]
    disk: DiskPlan
    memory: MemoryPlan
    seconds: float | None
    matching: MatchingPlan | None
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps of all levels."""
        return sum(level.steps for level in self.levels)

    def to_markdown(self) -> str:
        """Return the plan as Markdown tables."""
        parts = [
            markdown_table(["level", "sparsity", "steps"], self._level_rows()),
            markdown_table(["on disk", "at the end"], self._disk_rows()),
            markdown_table(["in memory while training", "one process"], self._memory_rows()),
            self._time_line(),
            *([] if self.matching is None else [_matching_line(self.matching)]),
            *(f"Note: {note}" for note in self.notes),
        ]
        return "\n\n".join(parts)

    __str__ = to_markdown

    def _level_rows(self) -> list[list[str]]:
        rows = [
            [f"{level.number}{' (final run)' if level.final_run else ''}", f"{level.sparsity:.4f}", f"{level.steps:,}"]
            for level in self.levels
        ]
        return [*rows, ["all", "", f"{self.steps:,}"]]

    def _disk_rows(self) -> list[list[str]]:
        rows = [[part, size_text(size)] for part, size in self.disk.parts.items()]
        return [*rows, ["all", size_text(self.disk.total)], ["at most, during the run", size_text(self.disk.peak)]]

    def _memory_rows(self) -> list[list[str]]:
        memory = self.memory
        rows = [
            [name, size_text(getattr(memory, name) / memory.shards)]
            for name in ("weights", "gradients", "optimizer", "masks", "norms")
            if name != "norms" or memory.norms
        ]
        activations = "not measured" if memory.activations is None else size_text(memory.activations)
        rows += [["activations of a batch", activations], ["all", size_text(memory.per_process)]]
        return [*rows, ["in main memory besides: the level's start", size_text(memory.host)]]

    def _time_line(self) -> str:
        if self.seconds is None:
            return "Time: not measured."
        return (
            f"Time: roughly {time_text(self.seconds)} for the forward and backward passes of all steps, estimated from "
            "one batch. Optimizer, evaluation and saving take additional time."
        )


def plan_search(
    trainer: LotteryTrainer,
    *,
    shards: int | None = None,
    matching: bool = True,
    others: Mapping[str, int] | None = None,
) -> SearchPlan:
    """Find out what ``trainer.train()`` will cost: steps, disk, memory and time of the whole search.

    The network runs forward and backward on one training batch, four times. Weights, buffers, gradients, modes and all
    random generators are the same afterwards, and nothing is written. Disk space is counted file by file and is right
    within a few per cent. Memory does not include the temporary memory of operations.

    Args:
        trainer: A LotteryTrainer or WinningSignTrainer.
        shards: Number of processes that share weights, gradients, optimizer state and masks. The default is all
            processes under FSDP and otherwise 1, since plain data parallelism copies everything to each process.
        matching: Whether to find the symmetries of the network too. This takes a copy of the network in float64.
        others: Name of any other thing that will be written to ``output_dir`` -> its bytes.

    Returns:
        The plan; print it.

    Raises:
        TypeError: The trainer is not a LotteryTrainer.
        ValueError: ``shards`` is below 1, or the search cannot begin.
    """
    if not isinstance(trainer, LotteryTrainer):
        raise TypeError(
            f"the trainer to plan for must be a LotteryTrainer; received {type(trainer).__name__}. "
            "Other trainings have no levels."
        )
    if shards is None:
        shards = trainer.args.world_size if trainer.is_fsdp_enabled else 1
    if shards < 1:
        raise ValueError(f"shards must be at least 1; received {shards}. Omit it unless processes share the weights.")
    with untouched(trainer.network):
        levels = plan_levels(trainer)
        optimizer = plan_optimizer(trainer)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        cost = _step_cost(trainer, batch)
        inputs = {name: value for name, value in batch.items() if name not in trainer.label_names}
        matched = plan_matching(trainer.network, inputs) if matching else None
        disk = plan_disk(trainer, levels, optimizer, others or {})
    passes = sum(level.steps for level in levels) * trainer.args.gradient_accumulation_steps
    return SearchPlan(
        levels,
        disk,
        plan_memory(trainer, optimizer.bytes, cost and cost.activations, shards),
        cost and passes * cost.seconds,
        matched,
        tuple(_notes(trainer, guessed=optimizer.guessed)),
    )


def _step_cost(trainer: LotteryTrainer, batch: Mapping[str, Any]) -> StepCost | None:
    """Return the cost of a step, or None if the whole network is not on the device or does not fit there."""
    if next(trainer.network.parameters()).device.type != trainer.args.device.type:
        return None  # a Trainer that shards the network moves it later
    try:
        return measure_step(trainer, batch)
    except torch.OutOfMemoryError:
        return None


def _notes(trainer: LotteryTrainer, *, guessed: bool) -> list[str]:
    """Return what the plan does not include for this trainer."""
    args, notes = trainer.args, []
    if guessed:
        notes.append(f"the state of {args.optim} could not be measured; two moments a weight are assumed.")
    if args.gradient_checkpointing:
        notes.append("activations are measured without gradient checkpointing, which needs less memory and more time.")
    if args.save_strategy == "best":
        notes.append("a checkpoint is counted for every evaluation; only the best ones are saved.")
    if "tensorboard" in (args.report_to or ()):
        notes.append("the log files of TensorBoard are not counted.")
    return notes


def _matching_line(plan: MatchingPlan) -> str:
    if plan.failure is not None:
        return f"Aligning two such networks is not possible yet: {plan.failure}"
    return (
        f"Aligning two such networks, an estimate: {plan.groups} groups, the largest of {plan.largest:,} units; "
        f"{size_text(plan.matrices)} of correlation matrices, and up to {plan.operations:.1e} operations a sweep."
    )


def size_text(size: float) -> str:
    """Format bytes in powers of 1000, such as ``50.8 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def time_text(seconds: float) -> str:
    """Format seconds in the largest unit that gives a number of at least two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
