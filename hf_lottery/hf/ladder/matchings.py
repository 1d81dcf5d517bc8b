"""The ways to match two dense networks that the rows of the ladder compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...alignment.learned import learned_matching
from ...alignment.match import Match
from ...alignment.matching import activation_matching, weight_matching
from ...symmetry.spec import PermutationSpec


@dataclass(frozen=True)
class Pairing:
    """Two trained networks to match.

    Attributes:
        spec: Their symmetries.
        source: The network to move.
        target: The network to move it towards.
        batches: Makes batches of training samples, with labels or without.
        loss: A network and a batch with labels -> the training loss.
        seed: Seed of what a matching draws.
    """

    spec: PermutationSpec
    source: nn.Module
    target: nn.Module
    batches: Callable[[bool], Sequence[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    seed: int


def _weight(pair: Pairing, **options: Any) -> Match:
    networks = {"source": pair.source, "target": pair.target, "seed": pair.seed, "residual": False}
    return weight_matching(pair.spec, **networks, **options)


def _activation(pair: Pairing, *, residual: bool = False, one_place: bool = False) -> Match:
    networks = {"source": pair.source, "target": pair.target, "seed": pair.seed, "residual": residual}
    return activation_matching(pair.spec, batches=pair.batches(False), one_place=one_place, **networks)


def _weight_after(pair: Pairing) -> Match:
    return _weight(pair, start=_activation(pair).permutation)


def _learned(pair: Pairing) -> Match:
    networks = {"source": pair.source, "target": pair.target, "seed": pair.seed, "residual": False}
    return learned_matching(pair.spec, batches=pair.batches(True), loss=pair.loss, **networks)


# Where streams stay, it is the row's choice.
MATCHINGS: dict[str, Callable[[Pairing], Match]] = {
    "weight": _weight,
    "weight_after": _weight_after,
    "activation": _activation,
    "one_place": lambda pair: _activation(pair, one_place=True),
    "residual": lambda pair: _activation(pair, residual=True),
    "learned": _learned,
}
