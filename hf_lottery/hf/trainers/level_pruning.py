"""What a Trainer adds to pruning: evidence from its training data, and one mask on all processes."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import cast

from accelerate.utils import gather_object
from torch import Tensor

from ...masks.mask import Mask
from ...networks.shards import as_shards, is_sharded
from ...pruning.evidence import Evidence, gather_evidence
from ...pruning.scores import Score, needed_by
from ...training.snapshot import Snapshot
from ..prunable_weights import Prunable
from .sparse_trainer import SparseTrainer

_UNSEEN = ("experts", "MultiheadAttention")  # their inputs pass no module of their own


def check_evidence(score: Score, weights: Prunable) -> None:
    """Find out before any training whether the evidence that a score needs can be had for every weight.

    Raises:
        ValueError: A weight is frozen and the score needs its gradient, or nobody sees the input of a weight.
    """
    name_of_score, needed = getattr(score, "__name__", "the score"), needed_by(score)
    for name, weight in weights.items():
        if "gradient" in needed and not weight.requires_grad:
            raise ValueError(f"{name_of_score} must be able to train {name!r}; received a frozen one. Exclude it.")
        if "input_norm" in needed and weights.kinds[name] in _UNSEEN:
            raise ValueError(
                f"{name_of_score} must see the input of a weight; received {name!r}, a {weights.kinds[name]} "
                "parameter. Exclude it, or choose another score."
            )


def level_evidence(
    trainer: SparseTrainer, weights: Prunable, score: Score, start: Snapshot, *, batches: int
) -> dict[str, Evidence]:
    """What a score needs to know of the level that was just trained; training data are read only if it needs them.

    Args:
        trainer: Whose training data to read, and whose loss to differentiate.
        weights: The weights to score.
        score: The score.
        start: Where the level started.
        batches: Global training batches to read.
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
        if is_sharded(tensor):  # FSDP2 has put the mean over the processes here
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
    """Raise unless every process has found the same mask: otherwise their networks have come apart.

    Raises:
        RuntimeError: Two processes have found different masks.
    """
    found = gather_object([mask.sha256()])
    if len(set(found)) > 1:
        raise RuntimeError(
            f"every process must find the same mask; received {len(set(found))} different ones of {len(found)} "
            f"processes at level {level}. Their weights differ, or a score of your own is not deterministic."
        )
