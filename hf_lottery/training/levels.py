"""Levels: the loop of train, prune and rewind, independent of how one level is trained.

``find_ticket`` runs this loop in memory, ``LotteryTrainer`` on disk and over several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..masks.mask import Mask
from ..pruning.mask_from_scores import prune
from ..pruning.scopes import Scope, global_ranking
from .snapshot import Snapshot

_SHOWN = 200  # characters of the metrics when a level is printed


class Start(NamedTuple):
    """The level that a training function is asked to train.

    Attributes:
        level: Number of the level; 0 is dense. Seed the data order with it to make a run repeatable.
        step: Optimizer steps that the weights were already trained for. Start the learning-rate schedule here and
            train the remaining steps.
        fine_tune: Whether to train at a small constant rate instead of the schedule (``rewind=none``).
    """

    level: int
    step: int = 0
    fine_tune: bool = False


@dataclass(frozen=True, repr=False)
class Level:
    """A trained level.

    Attributes:
        number: Number of the level; 0 is dense.
        mask: The weights that the level kept.
        sparsity: Fraction of the covered weights removed, in [0, 1].
        metrics: What the training function returned.
        start: The weights the level was trained from; with ``mask`` they are the ticket.
    """

    number: int
    mask: Mask
    sparsity: float
    metrics: Any
    start: Snapshot

    def __repr__(self) -> str:
        metrics = repr(self.metrics)
        if len(metrics) > _SHOWN:
            metrics = f"{metrics[:_SHOWN]}..."
        return f"Level({self.number}, sparsity {self.sparsity:.4f}, metrics {metrics})"


def run_levels(
    sparsities: Sequence[float],
    *,
    begin: Callable[[int], tuple[Mask, Snapshot]],
    train: Callable[[int, Mask, Snapshot], Any],
    next_mask: Callable[[Level, float], Mask],
    hand_over: Callable[[int, Mask], None],
    first: int = 0,
) -> Iterator[Level]:
    """Train level after level, and prune after each except the last.

    Args:
        sparsities: The sparsity of every level; level 0 has sparsity 0.
        begin: ``begin(number)`` puts the model at the start of a level, and returns the level's mask and this start.
        train: ``train(number, mask, start)`` trains one level under its mask to the end, and returns its metrics.
        next_mask: ``next_mask(level, sparsity)`` prunes the model that was just trained.
        hand_over: ``hand_over(number, mask)`` stores what a later ``begin(number)`` needs.
        first: The level to begin with. A resumed search does not train the levels before it again.

    Yields:
        One :class:`Level` for each sparsity. The model holds its trained weights.
    """
    for number in range(first, len(sparsities)):
        mask, start = begin(number)
        level = Level(number, mask, mask.sparsity, train(number, mask, start), start)
        if number + 1 < len(sparsities):
            hand_over(number + 1, next_mask(level, sparsities[number + 1]))
        yield level
        del mask, start, level  # free the weights before the next level loads its own


def check_levels(
    weights: Mapping[str, Tensor], sparsities: Sequence[float], *, scope: Scope, min_density: float
) -> None:
    """Check with random scores, before any training, that every level can be pruned.

    Raises:
        ValueError: The scope, sparsities and ``min_density`` contradict each other, or a level removes nothing.
    """
    total = sum(weight.numel() for weight in weights.values())
    for number, (before, after) in enumerate(pairwise(sparsities), start=1):
        if round(before * total) == round(after * total):
            raise ValueError(
                f"level {number} must remove weights; received sparsity {before:g} and then {after:g} of {total} "
                "weights. Prune more at each level, or use fewer levels."
            )
    if scope is global_ranking and not min_density:
        return  # one ranking over everything can always be cut
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
    mask = Mask.dense(weights)
    for number, sparsity in enumerate(sparsities[1:], start=1):
        try:
            mask = prune(scores, sparsity, scope=scope, min_density=min_density, within=mask)
        except ValueError as error:
            raise ValueError(f"level {number}, sparsity {sparsity:g}, cannot be pruned: {error}") from error
