"""Pruning a level in a Trainer: gather evidence from its training data, prune, and check that all processes agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice
from typing import cast

from accelerate.utils import gather_object
from torch import Tensor, nn

from ...masks.mask import Mask
from ...networks.shards import as_shards, is_sharded
from ...pruning.evidence import Evidence, gather_evidence
from ...pruning.mask_from_scores import prune
from ...pruning.scores import Score, needed_by
from ...training.levels import check_levels
from ...training.snapshot import Snapshot
from ..prunable_weights import Prunable, prunable
from .arguments import LotteryArguments
from .sparse_trainer import SparseTrainer


class WeightPruning:
    """Pruning single weights.

    Args:
        model: The network.
        args: Which weights, and which of them compete.

    Attributes:
        weights: The weights that are scored, and that masks cover.
        settings: What must be the same when a run is resumed, beside the arguments.

    Raises:
        ValueError: There are no such weights, or the scope cannot rank them.
    """

    def __init__(self, model: nn.Module, args: LotteryArguments):
        self.weights = prunable(model, include=args.include, exclude=args.exclude)
        self.settings: dict[str, str] = {}
        self._scope, self._least = args.get_scope(kinds=self.weights.kinds), args.min_density

    def check(self, sparsities: list[float]) -> None:
        """Raise ValueError unless every level can be pruned, and removes weights."""
        check_levels(self.weights, sparsities, scope=self._scope, min_density=self._least)

    def dense(self) -> Mask:
        """Make the mask that keeps all weights."""
        return Mask.dense(self.weights)

    def prune(self, scores: Mapping[str, Tensor], sparsity: float, *, within: Mask) -> Mask:
        """Remove the weights with the lowest scores."""
        return prune(scores, sparsity, scope=self._scope, min_density=self._least, within=within)

    def shuffled(self, mask: Mask, seed: int) -> Mask:
        """Make a random mask that keeps as many weights of each parameter."""
        return mask.shuffled(seed)

    def sparsity_of(self, mask: Mask) -> float:
        """Return the fraction of the weights that a mask removes."""
        return mask.sparsity


def level_evidence(
    trainer: SparseTrainer, weights: Prunable, score: Score, start: Snapshot, *, batches: int
) -> dict[str, Evidence]:
    """Gather the evidence that a score needs about the level that was just trained.

    Args:
        trainer: The Trainer, whose training data are read only if the score needs them.
        weights: The weights to score.
        score: The score.
        start: The weights that the level started from.
        batches: Number of global training batches to read.
    """
    needed = needed_by(score)
    fields = needed - {"start"}
    found = _gather(trainer, weights, fields, batches * trainer.args.gradient_accumulation_steps) if fields else {}
    starts = {name: as_shards(start.tensors[name], w) for name, w in weights.items()} if "start" in needed else {}
    return {name: found.get(name, Evidence())._replace(start=starts.get(name)) for name in weights}


def _gather(trainer: SparseTrainer, weights: Prunable, fields: Collection[str], count: int) -> dict[str, Evidence]:
    batches = map(trainer._prepare_inputs, islice(trainer.get_train_dataloader(), count))
    mine = gather_evidence(trainer.network, batches, trainer.loss, within=weights, fields=fields)

    def over_processes(tensor: Tensor) -> Tensor:
        if is_sharded(tensor):  # FSDP2 already holds the mean over the processes
            return tensor * trainer.args.world_size
        return cast(Tensor, trainer.accelerator.reduce(tensor, "sum"))

    return {
        name: Evidence(
            gradient=None if known.gradient is None else over_processes(known.gradient),
            input_norm=None if known.input_norm is None else over_processes(known.input_norm.square()).sqrt(),
        )
        for name, known in mine.items()
    }


def check_same_mask(mask: Mask, level: int) -> None:
    """Raise unless every process found the same mask; otherwise their networks have diverged.

    Raises:
        RuntimeError: Two processes found different masks.
    """
    found = gather_object([mask.sha256()])
    if len(set(found)) > 1:
        raise RuntimeError(
            f"every process must find the same mask; received {len(set(found))} different masks from {len(found)} "
            f"processes at level {level}. Check that their weights agree and that your score is deterministic."
        )
