"""Scores: how much each weight matters. A score is a function of one weight tensor and the evidence about it.

Every score here, and any of your own, is called as ``score(weight, evidence)`` and returns a tensor of the weight's
shape; weights with higher scores stay longer. :func:`needs` declares which evidence a score reads, so that a search
gathers that and nothing else. A score that declares nothing may read the weight and its start. Scores are computed in
float32: weights and evidence of half precision are converted first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..networks.names import named_weights
from ..networks.shards import as_shards, is_sharded
from .evidence import Evidence, in_full

Score = Callable[[Tensor, Evidence], Tensor]
_Score = TypeVar("_Score", bound=Callable[..., Tensor])
_UNDECLARED: Any = object()


def needs(*fields: str) -> Callable[[_Score], _Score]:
    """Declare which evidence a score reads.

    Args:
        fields: Any of ``gradient``, ``input_norm`` and ``start``; none if the score reads only the weight.

    Returns:
        A decorator that returns the same function.

    Raises:
        ValueError: There is no such evidence.

    Example:
        >>> @needs("gradient")
        ... def taylor(weight, evidence):
        ...     return (weight.detach() * evidence.gradient).square()
    """
    if unknown := set(fields) - set(Evidence._fields):
        raise ValueError(f"needs must name {', '.join(Evidence._fields)}; received {min(unknown)!r}.")

    def declare(score: _Score) -> _Score:
        score.needs = frozenset(fields)  # pyright: ignore[reportFunctionMemberAccess]
        return score

    return declare


def needed_by(score: Score) -> frozenset[str]:
    """Return the evidence that a score declared; only ``start`` if it declared nothing."""
    declared = _declared_by(score)
    return frozenset({"start"}) if declared is None else declared


def _declared_by(score: Score) -> frozenset[str] | None:
    while isinstance(score, partial) and not hasattr(score, "needs"):
        score = score.func
    return getattr(score, "needs", None)


class _Probe(Evidence):
    """Evidence for a dry call: reading a field that the score did not declare is an error."""

    gradient = property(lambda self: self[0])  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]
    input_norm = property(lambda self: self[1])  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]
    start = property(lambda self: self[2])  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        value = super().__getitem__(index)
        if value is _UNDECLARED:
            name = Evidence._fields[index]
            raise ValueError(
                f"a score must declare which evidence it reads; received one that reads {name} undeclared. "
                f"Decorate it with @needs({name!r})."
            )
        return value

    def __iter__(self):
        return (self[i] for i in range(len(self)))


def check_score(score: Score, weights: Mapping[str, Tensor]) -> None:
    """Call a score on made-up evidence to find out, before any training, whether it will work.

    The score is called on one weight of each shape and dtype. The state of torch's random generators is restored.

    Args:
        score: The score.
        weights: Name -> weight.

    Raises:
        ValueError: The score reads evidence that it did not declare, or its shape differs from the weight's.
    """
    declared, seen = needed_by(score), set()
    with torch.random.fork_rng([w.device for w in weights.values() if w.is_cuda]), torch.no_grad():
        for name, weight in weights.items():
            kind = (weight.shape, weight.dtype)
            if kind not in seen and not is_sharded(weight):
                full = in_full(weight)
                made_up = torch.ones_like(full)
                fields = [made_up if field in declared else _UNDECLARED for field in Evidence._fields]
                score_weights({name: full}, score, evidence={name: _Probe(*fields)})
            seen.add(kind)


@needs()
def magnitude(weight: Tensor, evidence: Evidence = Evidence()) -> Tensor:  # noqa: B008  # immutable
    """Score by magnitude, ``|w|``.

    Reference:
        Han et al., 2015, "Learning both Weights and Connections for Efficient Neural Networks", arXiv:1506.02626.
    """
    return weight.detach().abs()


@needs()
def random_score(weight: Tensor, evidence: Evidence = Evidence()) -> Tensor:  # noqa: B008
    """Score at random, the control that every ticket must beat; uniform in [0, 1) from torch's CPU generator."""
    return torch.rand(weight.shape).to(weight.device)


@needs("gradient")
def saliency(weight: Tensor, evidence: Evidence) -> Tensor:
    """Score by ``|w * dL/dw|``, the first-order change of the loss when the weight is removed.

    Raises:
        ValueError: The evidence has no gradient.

    Reference:
        Lee et al., 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", arXiv:1810.02340. We do
        not divide by the sum, which would not change any ranking.
    """
    return (weight.detach() * _required(evidence.gradient, "gradient", "saliency")).abs()


@needs("start")
def movement(weight: Tensor, evidence: Evidence) -> Tensor:
    """Score by (w^2 - w_start^2) / 2, how far training moved the weight away from zero; negative if towards zero.

    Raises:
        ValueError: The evidence has no start.

    Reference:
        Sanh et al., 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv:2005.07683. They sum
        -w * dL/dw over the steps of plain SGD. Ours is the limit of that sum for small steps (the integral of w dw).
        It needs no bookkeeping during training and works with every optimizer.
    """
    return (weight.detach().square() - _required(evidence.start, "start", "movement").square()) / 2


@needs("input_norm")
def wanda(weight: Tensor, evidence: Evidence) -> Tensor:
    """Score by ``|w| * ||x||``, the magnitude times the L2 norm of the input feature that the weight multiplies.

    Raises:
        ValueError: The evidence has no input norm, as is the case for stacked experts.

    Reference:
        Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695. They
        compare weights within each output; here the scope passed to ``prune`` decides.
    """
    return weight.detach().abs() * _required(evidence.input_norm, "input_norm", "wanda")


def score_weights(
    weights: nn.Module | Mapping[str, Tensor],
    score: Score = magnitude,
    *,
    evidence: Mapping[str, Evidence] | None = None,
) -> dict[str, Tensor]:
    """Score every weight tensor.

    Args:
        weights: Name -> weight, such as ``prunable(model)``.
        score: One of this module's scores, or any callable with the same signature.
        evidence: Name -> evidence, as :func:`gather_evidence` returns it. A missing name has no evidence.

    Returns:
        Name -> scores in the shape of the weight.

    Raises:
        ValueError: A score lacks its evidence, or has another shape than the weight; the message names the weight.
    """
    scores, declared = {}, sorted(_declared_by(score) or ())
    for name, weight in named_weights(weights).items():
        try:
            known = (evidence or {}).get(name, Evidence())
            for field in declared:
                _required(getattr(known, field), field, getattr(score, "__name__", "the score"))
            full = in_full(weight)
            if full is not weight or is_sharded(weight):
                known = Evidence(*(None if value is None else in_full(_sharded(value, weight)) for value in known))
            scores[name] = score(full, known)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
        if scores[name].shape != weight.shape:
            raise ValueError(
                f"the score of {name!r} must have the weight's shape {list(weight.shape)}; "
                f"received {list(scores[name].shape)}. Return one score for each weight."
            )
        scores[name] = _sharded(scores[name], weight)
    return scores


def _sharded(value: Tensor, weight: Tensor) -> Tensor:
    """Shard a tensor, which is equal on all processes, in the layout of the weight."""
    return as_shards(value.expand(weight.shape), weight) if is_sharded(weight) and not is_sharded(value) else value


def _required(value: Tensor | None, what: str, score: str) -> Tensor:
    if value is None:
        article = "an" if what == "input_norm" else "a"
        how = "Call gather_evidence() for it."
        if what == "input_norm":
            how += (
                " It finds the inputs of linear and convolution layers that are called as modules, so not those inside "
                "nn.MultiheadAttention, of embeddings or of stacked experts: leave these out, or use another score."
            )
        raise ValueError(f"{score} must be given evidence with {article} {what}; received none. {how}")
    return value
