"""The cost of matching two networks of an architecture, which carrying a mask from one to the other needs."""

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
        groups: Number of groups that are matched by default.
        largest: Units of the largest group.
        matrices: Bytes of all correlation matrices, which are held at once in float64.
        operations: Operations of all assignments in one sweep, n^3 for n units. A few sweeps are usual, and a solver
            often needs fewer operations.
        failure: Why the symmetries of the model were not found; None if they were found.
    """

    groups: int = 0
    largest: int = 0
    matrices: int = 0
    operations: float = 0
    failure: str | None = None


def plan_matching(model: nn.Module, inputs: Mapping[str, Any]) -> MatchingPlan:
    """Find the symmetries of ``model`` on one batch, and estimate the cost of matching."""
    try:
        with warnings.catch_warnings():  # discover() tells later which axes it froze
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
    """Return the assignments of a group: n^2 for a parent of n units that is matched too, n for another parent."""
    sizes = [(parent, spec.groups[parent].size) for parent in spec.groups[name].parents]
    return math.prod(size**2 if parent in chosen else size for parent, size in sizes)
