"""The ways to match two dense networks that the rows of the ladder compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...alignment.learned import learned_matching
from ...alignment.match import Match
from ...alignment.matching import activation_matching, weight_matching
from ...symmetry.permutation import Permutation
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

    @property
    def networks(self) -> dict[str, Any]:
        """What every matching takes by name."""
        return {"source": self.source, "target": self.target, "seed": self.seed}


def _weight(pair: Pairing, *, residual: bool = False, start: Permutation | None = None) -> Match:
    return weight_matching(pair.spec, start=start, residual=residual, **pair.networks)


def _activation(pair: Pairing, *, residual: bool = False, one_place: bool = False) -> Match:
    return activation_matching(
        pair.spec, batches=pair.batches(False), one_place=one_place, residual=residual, **pair.networks
    )


def _weight_after(pair: Pairing) -> Match:
    return _weight(pair, start=_activation(pair).permutation)


def _learned(pair: Pairing, *, residual: bool = False) -> Match:
    return learned_matching(pair.spec, batches=pair.batches(True), loss=pair.loss, residual=residual, **pair.networks)


# Streams stay as they are, except in the ways that say otherwise.
MATCHINGS: dict[str, Callable[[Pairing], Match]] = {
    "weight": _weight,
    "weight_after": _weight_after,
    "weight_residual": partial(_weight, residual=True),
    "activation": _activation,
    "one_place": partial(_activation, one_place=True),
    "activation_residual": partial(_activation, residual=True),
    "learned": _learned,
    "learned_residual": partial(_learned, residual=True),
}
