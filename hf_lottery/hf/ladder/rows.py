"""The rows of the transfer ladder: what each one trains, what it needs, and where its barrier leads.

References:
    Adnan et al., 2025, "Sparse Training from Random Initialization", arXiv:2505.05143: ``lth``, ``naive`` and the rows
    that permute. Oh, Baik and Lee, 2025, "Find A Winning Sign", arXiv:2504.05357: the rows of signs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...alignment.match import Match
from ...masks.mask import Mask
from ...pruning.mask_from_scores import prune
from ...pruning.scopes import PruneRequest, global_ranking
from ...pruning.scores import score_weights
from ...signs.signed_mask import SignedMask
from ...structured.unit_choices import choose_units, shuffle_units
from ...structured.unit_mask import UnitMask
from ...structured.unit_scoring import unit_scores
from ...symmetry.spec import PermutationSpec
from ...training.snapshot import Snapshot

# Rows that a transferred mask is compared to: the target's own ticket, and the source's mask as it is.
REFERENCES = ("lth", "naive")
# Search -> how it interpolates norm parameters. imp is iterative magnitude pruning, lrr learning-rate rewinding,
# aws A Winning Sign.
SEARCHES = {"imp": None, "lrr": "none", "aws": "step"}


@dataclass(frozen=True)
class Target:
    """The network that a row trains, and how to reach what the searches of both networks left.

    Attributes:
        network: The target network where its rows start.
        seed: The seed of the target.
        source: The seed of the source.
        level: The level of the searches whose masks are taken.
        searched: Kind of search and seed -> folder of that search.
        started: Seed -> the weights of that network where its rows start.
        matching: How units are matched, the source's network, the target's network -> match.
        norms: A network -> its norm parameters by name.
        spec: Finds the symmetries of the networks.
    """

    network: PreTrainedModel
    seed: int
    source: int
    level: int
    searched: Callable[[str, int], Path]
    started: Callable[[int], Snapshot]
    matching: Callable[[str, PreTrainedModel, PreTrainedModel], Match]
    norms: Callable[[nn.Module], Mapping[str, Tensor]]
    spec: Callable[[], PermutationSpec]

    def mask(self, search: str, seed: int) -> Mask:
        """Load the mask that a search found, of units if it pruned units."""
        return UnitMask.from_folder(self.searched(search, seed) / f"level-{self.level:02d}")

    def trained(self, search: str, seed: int, *, level: int | None = None) -> PreTrainedModel:
        """Load the network that a search trained under its mask."""
        level = self.level if level is None else level
        return type(self.network).from_pretrained(self.searched(search, seed) / f"level-{level:02d}/trained")

    def signs(self, search: str) -> SignedMask:
        """Return the signed mask that a search of the source found."""
        network = self.trained(search, self.source)
        return SignedMask.from_model(network, self.mask(search, self.source), norms=self.norms(network))

    def dense(self, seed: int) -> PreTrainedModel:
        """Load the dense network of a seed, trained to the end."""
        return self.trained("imp", seed, level=0)

    def early(self, seed: int) -> PreTrainedModel:
        """Load the network of a seed where its rows start."""
        model = copy.deepcopy(self.network)
        self.started(seed).restore_(model)
        return model

    def match(self, how: str, search: str = "imp") -> tuple[Match, float]:
        """Match the source's network to the target's.

        Args:
            how: "early" matches activations where rows start; anything else is a way to match the dense networks.
            search: The search that trained these.

        Returns:
            The match, and its CPU seconds.
        """
        load = self.early if how == "early" else partial(self.trained, search, level=0)
        source, target, start = load(self.source), load(self.seed), time.process_time()
        return self.matching(how, source, target), time.process_time() - start


class Reused(NamedTuple):
    """What the target is trained under.

    Attributes:
        mask: The mask; None trains a dense network.
        signed: The signed mask whose signs the network was given, if it was given any.
        match: The match by which mask and signs were aligned, if they were.
        match_seconds: CPU seconds of the match.
    """

    mask: Mask | None = None
    signed: SignedMask | None = None
    match: Match | None = None
    match_seconds: float = 0.0


def _no_mask(target: Target) -> Reused:
    return Reused()


def _own_mask(target: Target) -> Reused:
    return Reused(target.mask("imp", target.seed))


def _own_subnetwork(target: Target, search: str) -> Reused:
    target.network.load_state_dict(target.trained(search, target.seed).state_dict())
    return Reused(target.mask(search, target.seed))


def _mask(target: Target, search: str = "imp") -> Reused:
    return Reused(target.mask(search, target.source))


def _shuffled_mask(target: Target) -> Reused:
    mask = target.mask("imp", target.source)
    if isinstance(mask, UnitMask):
        return Reused(shuffle_units(mask, target.spec(), seed=target.seed))
    return Reused(mask.shuffled(target.seed))


def _largest_mask(target: Target) -> Reused:
    mask, weights = target.mask("imp", target.source), dict(target.network.named_parameters())
    scores = score_weights({name: weights[name] for name in mask})
    if isinstance(mask, UnitMask):
        return Reused(choose_units(mask, spec := target.spec(), unit_scores(spec, scores)))

    def as_many(request: PruneRequest) -> dict[str, Tensor]:
        gone = {name: int((~kept).sum()) for name, kept in mask.items()}
        return {name: global_ranking(request.only([name], gone=gone[name]))[name] for name in request.scores}

    return Reused(prune(scores, mask.sparsity, scope=as_many))


def _permuted_mask(target: Target, how: str) -> Reused:
    found, seconds = target.match(how)
    return Reused(found.permutation(target.mask("imp", target.source)), match=found, match_seconds=seconds)


def _give(target: Target, signed: SignedMask) -> Reused:
    signed.transfer_(target.network)
    return Reused(signed.mask, signed)


def _signs(target: Target, search: str = "aws") -> Reused:
    return _give(target, target.signs(search))


def _signs_and_norms(target: Target, search: str) -> Reused:
    with torch.no_grad():
        trained = target.norms(target.trained(search, target.source))
        for name, norm in target.norms(target.network).items():
            norm.copy_(trained[name])
    return _signs(target, search)


def _random_signs(target: Target) -> Reused:
    return _give(target, target.signs("aws").randomized(target.seed))


def _shuffled_signs(target: Target) -> Reused:
    return _give(target, target.signs("aws").shuffled(target.seed))


def _dense_signs(target: Target) -> Reused:
    dense = target.dense(target.source)
    return _give(target, SignedMask.from_model(dense, target.signs("aws").mask, norms=target.norms(dense)))


def _permuted_signs(target: Target) -> Reused:
    (found, seconds), signed = target.match("weight", "aws"), target.signs("aws")
    mask, signs = found.permutation(signed.mask), found.permutation(dict(signed))
    reused = _give(target, SignedMask(mask, signs, medians=signed.medians))
    return reused._replace(match=found, match_seconds=seconds)


@dataclass(frozen=True)
class Row:
    """One way of reusing a ticket.

    Attributes:
        reuse: Prepares the target's network in place and returns what it is trained under.
        about: What the row is, for the help text.
        of_source: The searches of the source that it reads.
        of_target: The searches of the target that it reads, besides the one that says where rows start.
        end: The row to whose solution its barrier leads, if it has one: "lth" of the target, "lrr" or "aws" of the
            source.
        by_default: Whether a ladder that does not choose its rows has this one.
    """

    reuse: Callable[[Target], Reused]
    about: str
    of_source: tuple[str, ...] = ()
    of_target: tuple[str, ...] = ()
    end: str | None = None
    by_default: bool = True


_MASK = partial(Row, of_source=("imp",), end="lth")
_PERMUTED = partial(_MASK, of_target=("imp",))
_LRR = partial(Row, of_source=("lrr",), end="lrr", by_default=False)
_AWS = partial(Row, of_source=("aws",), end="aws", by_default=False)

ROWS: dict[str, Row] = {
    "dense": Row(_no_mask, "no mask, trained from the initialization on"),
    "lth": Row(_own_mask, "the mask of the target's own ticket", of_target=("imp",)),
    "random": _MASK(_shuffled_mask, "the source's mask, shuffled within each layer, or units within each group"),
    "magnitude": _MASK(
        _largest_mask,
        "the target's largest weights or units where its rows start, as many in each layer as the source's mask keeps",
        by_default=False,
    ),
    "naive": _MASK(_mask, "the source's mask as it is"),
    "permuted_weight": _PERMUTED(
        partial(_permuted_mask, how="weight"), "naive, aligned by the weights of the dense networks"
    ),
    "permuted_activation": _PERMUTED(
        partial(_permuted_mask, how="activation"), "naive, aligned by the activations of the dense networks"
    ),
    "permuted_one_place": _PERMUTED(
        partial(_permuted_mask, how="one_place"),
        "permuted_activation with each unit observed at one place, as the alignment paper does",
        by_default=False,
    ),
    "permuted_weight_after": _PERMUTED(
        partial(_permuted_mask, how="weight_after"),
        "permuted_weight, started from the permutation of permuted_activation",
        by_default=False,
    ),
    "permuted_learned": _PERMUTED(
        partial(_permuted_mask, how="learned"),
        "naive, aligned by the loss between the dense networks, which takes training",
        by_default=False,
    ),
    "permuted_early": _PERMUTED(
        partial(_permuted_mask, how="early"), "naive, aligned by activations where rows start", by_default=False
    ),
    **{
        f"permuted_{how}_residual": _PERMUTED(
            partial(_permuted_mask, how=f"{how}_residual"),
            f"permuted_{how} with the residual stream matched too, for transformers and mixers",
            by_default=False,
        )
        for how in ("weight", "activation", "learned")
    },
    "lrr": Row(
        partial(_own_subnetwork, search="lrr"), "the target's own subnetwork of LRR", of_target=("lrr",),
        by_default=False,
    ),
    "lrr_signs": _LRR(partial(_signs, search="lrr"), "mask and signs of the source's LRR"),
    "lrr_mask": _LRR(partial(_mask, search="lrr"), "the mask of the source's LRR alone"),
    "lrr_signs_norms": _LRR(
        partial(_signs_and_norms, search="lrr"), "mask, signs and trained norm parameters of the source's LRR"
    ),
    "aws": Row(
        partial(_own_subnetwork, search="aws"), "the target's own subnetwork of AWS", of_target=("aws",),
        by_default=False,
    ),
    "aws_signs": _AWS(_signs, "mask and signs of the source's AWS"),
    "aws_mask": _AWS(partial(_mask, search="aws"), "the mask of the source's AWS alone"),
    "aws_signs_norms": _AWS(
        partial(_signs_and_norms, search="aws"), "mask, signs and trained norm parameters of the source's AWS"
    ),
    "random_signs": _AWS(_random_signs, "the mask of the source's AWS with random signs"),
    "shuffled_signs": _AWS(_shuffled_signs, "aws_signs, the signs shuffled within each layer"),
    "dense_signs": _AWS(
        _dense_signs,
        "the mask of the source's AWS with the signs of its dense network",
        of_source=("aws", "imp"),
    ),
    "permuted_signs": _AWS(
        _permuted_signs, "aws_signs, aligned by the weights of the dense networks of both AWS", of_target=("aws",)
    ),
}  # fmt: skip
