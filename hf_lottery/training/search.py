"""find_ticket: train, score, prune, rewind, level after level (iterative magnitude pruning and its relatives)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..masks.mask import Mask
from ..networks.names import plain_name, unwrap
from ..pruning.mask_from_scores import prune
from ..pruning.schedules import Schedule, geometric
from ..pruning.scopes import Scope, global_ranking
from ..pruning.scores import Evidence, Score, magnitude, score_weights
from .rewind import RewindPoint, init
from .snapshot import Snapshot
from .sparsity import keep_sparse


class Start(NamedTuple):
    """What a training function must know about the level it trains.

    Attributes:
        level: Number of the level; 0 is dense. Seed the data order with it for a run that can be repeated.
        step: Optimizer steps that lie behind the weights: start the learning-rate schedule here, train the rest.
        fine_tune: Whether to train at a small constant rate instead of the schedule (``rewind=none``).
    """

    level: int
    step: int = 0
    fine_tune: bool = False


@dataclass(frozen=True)
class Level:
    """A trained level.

    Attributes:
        number: 0 is dense.
        mask: What the level kept.
        sparsity: Fraction of the covered weights removed, in [0, 1].
        metrics: What the training function returned.
        start: The weights the level was trained from; with ``mask`` they are the ticket.
    """

    number: int
    mask: Mask
    sparsity: float
    metrics: Any
    start: Snapshot


def find_ticket(
    model: nn.Module,
    train: Callable[[nn.Module, Start], Any],
    *,
    within: Mapping[str, Tensor],
    score: Score = magnitude,
    sparsity: float | None = None,
    levels: int | None = None,
    pruning_fraction: float = 0.2,
    schedule: Schedule = geometric,
    rewind: RewindPoint = init,
    scope: Scope = global_ranking,
    min_density: float = 0.0,
    evidence: Callable[[nn.Module], Mapping[str, Evidence]] | None = None,
) -> Iterator[Level]:
    """Find a lottery ticket: train the model, prune its least important weights, rewind the rest, and again.

    Args:
        model: Trained in place; at each level that is yielded it holds that level's trained weights.
        train: ``train(model, start)`` trains the model to the end with a fresh optimizer and returns metrics. The mask
            is held for it.
        within: Name -> parameter that may be pruned, ``prunable(model)`` as a rule.
        score: ``score(weight, evidence)``, higher stays longer.
        sparsity: Target sparsity in (0, 1), hit exactly by the last level. Or give ``levels``.
        levels: Number of levels of pruning.
        pruning_fraction: Share removed at each level, of what remains.
        schedule: Sparsities of the levels from the three above.
        rewind: Where each level starts from; a moment in steps, as epochs are not known here.
        scope: Which weights compete with each other.
        min_density: Fraction of every parameter that must stay.
        evidence: ``evidence(model)`` gathers what the score needs from the trained model; ``start`` is filled in here.

    Yields:
        One :class:`Level` for each sparsity of the schedule, the dense level 0 first.

    Raises:
        ValueError: A setting is out of range, or training ended before the step to rewind to.

    Reference:
        Frankle and Carbin, 2019, arXiv:1803.03635; Frankle et al., 2020, arXiv:1912.05671.
    """
    sparsities = schedule(sparsity=sparsity, levels=levels, pruning_fraction=pruning_fraction)
    weights = {plain_name(name): weight for name, weight in within.items()}
    _check_within(model, weights)
    check_levels(weights, sparsities, scope=scope, min_density=min_density)
    moment = rewind.in_steps()

    def next_mask(mask: Mask, start: Snapshot, target: float) -> Mask:
        known = evidence(model) if evidence else {}
        whole = {
            name: known.get(name, Evidence())._replace(start=start.tensors[name].to(weight.device))
            for name, weight in weights.items()
        }
        scores = score_weights(weights, score, whole)
        return prune(scores, target, scope=scope, min_density=min_density, within=mask)

    return _levels(model, train, Mask.dense(weights), sparsities, rewind, moment, next_mask)


def _levels(
    model: nn.Module,
    train: Callable[[nn.Module, Start], Any],
    mask: Mask,
    sparsities: Sequence[float],
    rewind: RewindPoint,
    moment: int,
    next_mask: Callable[[Mask, Snapshot, float], Mask],
) -> Iterator[Level]:
    start = rewound = Snapshot.capture(model)
    for number in range(len(sparsities)):
        if number and rewind.keeps_weights:
            start = Snapshot.capture(model)
        elif number:
            start = rewound
            start.restore_(model)
        if number:
            with keep_sparse(model, mask):
                metrics = train(model, Start(number, start.step, fine_tune=rewind.kind == "none"))
        else:
            with capture_at(model, moment) as captured:
                metrics = train(model, Start(0))
            rewound = captured()
        level = Level(number, mask, mask.sparsity, metrics, start)
        if number + 1 < len(sparsities):
            mask = next_mask(mask, start, sparsities[number + 1])
        yield level


def check_levels(
    weights: Mapping[str, Tensor], sparsities: Sequence[float], *, scope: Scope, min_density: float
) -> None:
    """Find out before any training whether every level can be pruned, with random scores.

    Raises:
        ValueError: Scope, sparsities and ``min_density`` contradict each other, or a level removes nothing.
    """
    total = sum(weight.numel() for weight in weights.values())
    for number, (before, after) in enumerate(pairwise(sparsities), start=1):
        if round(before * total) == round(after * total):
            raise ValueError(
                f"level {number} must remove weights; received sparsity {before:g} and then {after:g} of {total} "
                "weights. Prune more at each level, or fewer levels."
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


def _check_within(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    Mask.dense(weights).check_fits(model)
    own = {plain_name(name): parameter for name, parameter in unwrap(model).named_parameters()}
    for name, weight in weights.items():
        if own.get(name) is not weight:
            raise ValueError(
                f"within must hold the parameters of this very model; received another {name!r}, or the second name of "
                "a tied one. Pass prunable(model)."
            )


@contextmanager
def capture_at(model: nn.Module, step: int) -> Iterator[Callable[[], Snapshot]]:
    """Capture the model after ``step`` steps of its optimizer, whoever takes them; of several, the first counts.

    Yields:
        A function that returns the snapshot, to be called once the block is over; ValueError if it ended before.
    """
    taken, snapshot = 0, Snapshot.capture(model) if step == 0 else None
    ours, first = {id(parameter) for parameter in model.parameters()}, None

    def after_step(optimizer, args, kwargs) -> None:
        nonlocal taken, snapshot, first
        if first is None and any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
            first = optimizer
        if optimizer is first:
            taken += 1
            if taken == step:
                snapshot = Snapshot.capture(model, step)

    def result() -> Snapshot:
        if snapshot is None:
            raise ValueError(f"the rewind step must lie within training; received {step} of {taken}. Rewind earlier.")
        return snapshot

    handle = register_optimizer_step_post_hook(after_step)
    try:
        yield result
    finally:
        handle.remove()
