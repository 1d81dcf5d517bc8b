"""Pruning whole units in a Trainer, such as channels, heads and units of feed-forward layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor
from transformers.trainer_utils import has_length

from ...masks.mask import Mask, matrices_of
from ...networks.selection import Patterns
from ...structured import UnitMask, prune_units, unit_candidates
from ...structured.unit_choices import shuffle_units
from ...symmetry.discovery import discover
from ...symmetry.spec import PermutationSpec
from ..prunable_weights import Prunable, prunable
from ..tasks.batches import example_batch
from .arguments import SCOPES, LotteryArguments
from .sparse_trainer import SparseTrainer


class UnitPruning:
    """Pruning whole units of the groups of a spec.

    Args:
        trainer: The Trainer, whose network and data the spec is discovered on.
        args: Which groups, which of them compete, and what remains at least.
        spec: The symmetries of the network, if they are known.

    Attributes:
        spec: The symmetries.
        weights: The weights that the units receive and send through.
        settings: What must be the same when a run is resumed, beside the arguments.

    Raises:
        ValueError: There is no spec, and no batch to discover it on; or ``args`` do not fit the groups.
        SymmetryError: The network cannot be traced, or has no such groups.
        SpecMismatchError: The spec is of another network.
    """

    def __init__(self, trainer: SparseTrainer, args: LotteryArguments, spec: PermutationSpec | None):
        self._model, self._args = trainer.network, args
        self.spec = _discovered(trainer) if spec is None else spec
        self.settings = {"spec": self.spec.fingerprint}
        self._dense = self._pruned(self._any_scores(), 0.0)
        kinds = prunable(self._model, include=".*").kinds
        named = matrices_of(self._model)
        self.weights = Prunable(
            {name: cast(torch.nn.Parameter, named[name]) for name in self._dense},
            {name: kinds.get(name, "other") for name in self._dense},
        )

    def check(self, sparsities: list[float]) -> None:
        """Raise ValueError unless every level removes units."""
        total, last = self._dense.unit_count, len(sparsities) - 1
        for number, (before, after) in enumerate(pairwise(sparsities), start=1):
            none = round(before * total) == round(after * total)
            if not none and number in (1, last):  # what must stay stops the first level, or the last one as well
                none = len({self._pruned(self._any_scores(), s).kept_units for s in (before, after)}) == 1
            if none:
                bounds = {name: getattr(self._args, name) for name in ("min_density", "structured_multiple")}
                raise ValueError(
                    f"level {number} must remove units; received sparsity {before:g} and then {after:g} of {total} "
                    f"units, with {' and '.join(f'{name}={value:g}' for name, value in bounds.items())}. Prune more at "
                    "each level, use fewer levels, or lower what must stay."
                )

    def dense(self) -> UnitMask:
        """Make the mask that keeps all units."""
        return self._dense

    def prune(self, scores: Mapping[str, Tensor], sparsity: float, *, within: Mask) -> UnitMask:
        """Remove the units with the lowest scores."""
        return self._pruned(scores, sparsity, within=cast(UnitMask, within))

    def shuffled(self, mask: Mask, seed: int) -> UnitMask:
        """Make a mask that keeps as many units of each group, at random."""
        return shuffle_units(cast(UnitMask, mask), self.spec, seed=seed)

    def sparsity_of(self, mask: Mask) -> float:
        """Return the fraction of the units that a mask removes."""
        return cast(UnitMask, mask).unit_sparsity

    def _any_scores(self) -> dict[str, Tensor]:
        """Scores that make all units equal: how many go does not depend on them."""
        return {name: torch.zeros(weight.shape) for name, weight in matrices_of(self._model).items()}

    def _pruned(self, scores: Mapping[str, Tensor], sparsity: float, *, within: UnitMask | None = None) -> UnitMask:
        args = self._args
        chosen = chosen_groups(self.spec, args.structured_groups)
        least = {name: max(1, math.ceil(args.min_density * self.spec.groups[name].size)) for name in chosen}
        return prune_units(
            self._model,
            self.spec,
            scores,
            sparsity=sparsity,
            scope=SCOPES[args.scope],
            include=chosen,
            multiple=args.structured_multiple,
            minimum=least,
            within=within,
        )


def chosen_groups(spec: PermutationSpec, patterns: Patterns | None) -> list[str]:
    """Return the groups to prune: the candidates, or the free groups that patterns name.

    Args:
        spec: The symmetries.
        patterns: Regular expressions, as for ``spec.select``. One such as "mlp" may name frozen groups too, which are
            left out, unless it names no others.

    Raises:
        SymmetryError: A pattern matches no group.
    """
    if not patterns:
        return unit_candidates(spec)
    named = spec.select(patterns)
    return [name for name in named if name in spec.free] or named


def _discovered(trainer: SparseTrainer) -> PermutationSpec:
    if not has_length(trainer.train_dataset):
        raise ValueError(
            "a structured search must be given a training set with a length, to find the units on a batch of it; "
            "received a stream. Pass spec=discover(model, batch)."
        )
    return discover(trainer.network, example_batch(trainer))
