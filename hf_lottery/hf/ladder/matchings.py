"""The ways to match two dense networks that the rows of the ladder compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

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
        batches: Makes batches of training samples without labels.
        error: A network -> its error on the test data, with batch norms recalibrated.
        seed: Seed of what a matching draws.
    """

    spec: PermutationSpec
    source: nn.Module
    target: nn.Module
    batches: Callable[[], Sequence[Any]]
    error: Callable[[nn.Module], float]
    seed: int


def _weight(pair: Pairing) -> Match:
    return weight_matching(pair.spec, source=pair.source, target=pair.target, seed=pair.seed, residual=False)


def _activation(pair: Pairing, **options: Any) -> Match:
    return activation_matching(
        pair.spec, source=pair.source, target=pair.target, batches=pair.batches(), seed=pair.seed,
        **{"residual": False, **options},
    )  # fmt: skip


# Where streams stay, it is the row's choice.
MATCHINGS: dict[str, Callable[[Pairing], Match]] = {
    "weight": _weight,
    "activation": _activation,
    "one_place": lambda pair: _activation(pair, one_place=True),
    "residual": lambda pair: _activation(pair, residual=True),
}
