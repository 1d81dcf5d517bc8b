"""Learned matching: the permutation whose network halfway to the target has the smallest loss.

The loss is no function of the permutation that could be differentiated. A straight-through estimator learns weights
instead: latent weights start as those of the target, the permutation is the one that matches the source to them, and
the gradient at the interpolated network is applied to them as if they were the permuted weights.

References:
    Ainsworth, Hayase and Srinivasa, 2023, "Git Re-Basin", arXiv:2209.04836, Algorithm 3. This module starts where
    another matching ended, and keeps the best permutation that it meets.
    Theus et al., 2025, "Generalized Linear Mode Connectivity for Transformers", arXiv:2506.22712 (learned matching of
    transformers; the place on the line is drawn between 0.4 and 0.6). They learn one matrix for each permutation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.generators import kept_generators
from ..networks.names import named_state, unwrap
from ..networks.selection import Patterns
from ..symmetry.permutation import Permutation
from ..symmetry.spec import PermutationSpec
from .assignment import families
from .coordinate_descent import descend, measured
from .match import Match
from .match_report import MatchReport
from .matching import check_runnable, check_start, chosen_groups, weight_ties, weights_to_match

Loss = Callable[[nn.Module, Any], Tensor]
_NEAR_THE_MIDDLE = 0.4, 0.6


def learned_matching(
    spec: PermutationSpec,
    *,
    source: nn.Module,
    target: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    held_out: Iterable[Any] | None = None,
    epochs: int = 20,
    learning_rate: float = 0.02,
    start: Permutation | None = None,
    seed: int = 0,
    iterations: int = 100,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    residual: bool | None = None,
) -> Match:
    """Learn the permutation of ``source`` that makes the loss between the two networks small.

    Both networks must be trained, and the batches must hold labels. Each step matches the source to the latent weights,
    draws a place on the line to the target near the middle, and applies the gradient of the loss there to the latent
    weights by Adam. After each pass over the batches the loss in the middle of the line is measured. The best
    permutation is returned; the start counts too, so that this loss is never higher than that of the start.

    The interpolated network is a copy of the target, in eval mode but for batch norms: these use the statistics of the
    batch, because interpolated running statistics belong to no network. Measure the result likewise, after
    :func:`hf_lottery.recalibrated`. A step costs a forward and a backward pass, and a sweep of weight matching.

    Args:
        spec: The symmetries of both networks.
        source: The network to move; not changed.
        target: The network to move it towards; not changed.
        batches: Training batches, as ``loss`` takes them; a list, or a loader that can be gone through many times.
        loss: ``loss(model, batch)`` returns the scalar to make small.
        held_out: The batches to measure the loss in the middle on; ``batches`` by default.
        epochs: How many passes over the batches.
        learning_rate: The learning rate of Adam, about how far a latent weight moves in a step.
        start: A permutation to start from, such as that of an activation matching. By default weights are matched.
        seed: Seed of the places on the line, of what loaders and the loss draw by torch, and of the weight matching.
        iterations: The most sweeps of each weight matching.
        include: As in :func:`hf_lottery.weight_matching`.
        exclude: As in :func:`hf_lottery.weight_matching`.
        residual: As in :func:`hf_lottery.weight_matching`.

    Returns:
        The permutation, and a report that compares the weights as the one of a weight matching does; they may well be
        less alike than chance would have it. Its ``objective`` is minus the smallest loss in the middle, at the start
        and after every pass; ``converged`` says that the last pass found no smaller one.

    Raises:
        SpecMismatchError: A network or ``start`` is not of the spec, or the two networks tie different weights.
        SymmetryError: A pattern matches no group.
        ValueError: There are no batches, ``epochs`` or ``iterations`` is below 1, a weight cannot be matched, or the
            loss is not one finite number.
        TypeError: A network is not a model, ``start`` is no permutation, or the batches are an iterator.

    Warns:
        UserWarning: The spec is not proven yet.
    """
    check_runnable(source=source, target=target)
    _check_lasting(batches, held_out)
    if epochs < 1:
        raise ValueError(f"epochs must be 1 or more; received {epochs}.")
    if start is not None:
        check_start(spec, start)
    chosen, left_out = chosen_groups(spec, include, exclude, residual)
    ties, among = weight_ties(spec, source, target, chosen), families(spec, chosen)

    def match(ties: Any, start: Permutation | None) -> Permutation:
        found = descend(spec, ties, among, seed=seed, iterations=iterations, inward=start is None, start=start)
        return found.permutation

    with kept_generators(), torch.enable_grad():
        torch.manual_seed(seed)
        line, places = _Line(source, target, loss), np.random.default_rng(seed)
        weights, learned = (
            {name: _in_single(tensor) for name, tensor in tensors.items()}
            for tensors in weights_to_match(spec, source=source, target=target)
        )
        optimizer = torch.optim.Adam(learned.values(), learning_rate)
        current = best = start or match(ties, None)
        judges = batches if held_out is None else held_out
        losses = [line.middle(best, judges)]
        for _ in range(epochs):
            for batch in batches:
                line.give_gradients_(learned, current, places.uniform(*_NEAR_THE_MIDDLE), batch)
                optimizer.step()
                current = match(weight_ties(spec, weights, learned, chosen), current)
            losses.append(line.middle(current, judges))
            if losses[-1] < min(losses[:-1]):
                best = current
    smallest = np.minimum.accumulate(losses)
    converged = bool(smallest[-1] == smallest[-2])
    report = MatchReport(measured(ties, among, best), tuple((-smallest).tolist()), converged, left_out)
    return Match(best, report)


class _Line:
    """The line from the target to a permuted source, on which a copy of the target is moved.

    Args:
        source: The network to permute.
        target: The network at 0.
        loss: The loss of a network on a batch.
    """

    def __init__(self, source: nn.Module, target: nn.Module, loss: Loss):
        self._model = copy.deepcopy(unwrap(target)).eval()
        for module in self._model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        self._loss = loss
        self._written = named_state(self._model, adapters=True)
        self._target, self._source = (
            {
                name: tensor.detach().to(self._written[name], copy=True)
                for name, tensor in named_state(network, adapters=True).items()
                if tensor.is_floating_point()
            }
            for network in (target, source)
        )

    def give_gradients_(
        self, learned: Mapping[str, Tensor], permutation: Permutation, place: float, batch: Any
    ) -> None:
        """Give learned weights the gradients of the permuted weights that they stand for, at a place on the line."""
        self._move(permutation, place)
        weights = [self._written[name].requires_grad_() for name in learned]
        found = torch.autograd.grad(self._value(batch), weights, allow_unused=True, materialize_grads=True)
        for tensor, gradient in zip(learned.values(), found, strict=True):
            tensor.grad = place * gradient.to(tensor.dtype)

    @torch.no_grad()
    def middle(self, permutation: Permutation, batches: Iterable[Any]) -> float:
        """Return the mean loss over batches in the middle of the line."""
        self._move(permutation, 0.5)
        values = [self._value(batch).item() for batch in batches]
        if not values:
            raise ValueError("batches must hold at least one batch; received none. Was the loader used up?")
        return float(np.mean(values))

    def _value(self, batch: Any) -> Tensor:
        value = self._loss(self._model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.isfinite():
            received = value.detach().flatten()[:3].tolist() if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"loss(model, batch) must return a tensor of one finite number; received {received}. Return the mean, "
                "such as model(**batch).loss."
            )
        return value

    @torch.no_grad()
    def _move(self, permutation: Permutation, place: float) -> None:
        moved = permutation(self._source)
        for name, target in self._target.items():
            self._written[name].copy_(target.lerp(moved[name], place))


def _check_lasting(*batches: Any) -> None:
    for given in batches:
        if isinstance(given, Iterator):
            raise TypeError(
                f"batches must be gone through many times; received a {type(given).__name__}, which is used up after "
                "one pass. Pass a list or a loader."
            )


def _in_single(tensor: Tensor) -> Tensor:
    """Copy a tensor, in single precision at least: in half precision Adam would divide by zero."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
