"""What it costs to match two networks of an architecture, for carrying a mask from one to the other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...alignment.correlation import sites
from ...alignment.matching import residual_streams
from ...symmetry.discovery import discover
from ...symmetry.errors import SymmetryError
from ...symmetry.spec import PermutationSpec


@dataclass(frozen=True)
class MatchingPlan:
    """An estimate of the cost of ``activation_matching`` between two networks of this architecture.

    Attributes:
        groups: Groups that may be permuted and are matched by default.
        largest: Units of the largest of them.
        matrices: Bytes of all correlation matrices, held at once in float64.
        operations: Of the assignments, n^3 for n units, in one sweep; a few sweeps are usual, and a solver is often
            faster than its bound.
        failure: Why there is none of this, if the symmetries of the model were not found.
    """

    groups: int = 0
    largest: int = 0
    matrices: int = 0
    operations: float = 0
    failure: str | None = None


def plan_matching(model: nn.Module, inputs: Mapping[str, Any]) -> MatchingPlan:
    """Find the symmetries of ``model`` on one batch, and count; see :class:`MatchingPlan`."""
    try:
        with warnings.catch_warnings():  # what was frozen, and why, is told by discover() when it counts
            warnings.simplefilter("ignore")
            spec = discover(model, dict(inputs))
    except SymmetryError as error:
        return MatchingPlan(failure=str(error))
    streams = set(residual_streams(spec))
    chosen = {name: group.size for name, group in spec.free.items() if name not in streams and group.size > 1}
    observed = sum(site.axis.positions.size**2 for site in sites(spec, model, chosen))
    operations = sum(_problems(spec, name, chosen) * size**3 for name, size in chosen.items())
    return MatchingPlan(len(chosen), max(chosen.values(), default=0), 8 * observed, float(operations))


def _problems(spec: PermutationSpec, name: str, chosen: Mapping[str, int]) -> int:
    """Assignments of a group: one for each pair of parents that are matched too, else one for each parent."""
    sizes = [(parent, spec.groups[parent].size) for parent in spec.groups[name].parents]
    return math.prod(size**2 if parent in chosen else size for parent, size in sizes)
