"""Other units in the same numbers: the controls of a unit mask.

How many units of each group stay is a size of the network. Which ones stay is the only other thing that a unit mask
says.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..masks.mask import MaskMismatchError
from ..symmetry.structure import Structure
from .unit_mask import UnitMask


def choose_units(mask: UnitMask, spec: Structure, scores: Mapping[str, Tensor]) -> UnitMask:
    """Keep as many units of each group as a mask does, those with the highest scores.

    Args:
        mask: Says how many stay.
        spec: The symmetries that its groups are of.
        scores: Group name -> scores of its units, as :func:`unit_scores` returns them. Of equal ones the last stay.

    Raises:
        SpecMismatchError: The mask is of another spec.
        MaskMismatchError: A group has no scores, or scores of another shape.

    Example:
        >>> from torch import nn
        >>> from hf_lottery import discover
        >>> spec = discover(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.ones(3, 4),))
        >>> (group,) = spec.free
        >>> mask = UnitMask({group: torch.tensor([True, False, False])}, spec)
        >>> choose_units(mask, spec, {group: torch.tensor([0.1, 0.2, 0.3])}).units[group]
        tensor([False, False,  True])
    """
    mask.check_spec(spec)
    units = {}
    for group, kept in mask.units.items():
        if group not in scores or scores[group].shape != kept.shape:
            received = list(scores[group].shape) if group in scores else "none"
            raise MaskMismatchError(
                f"the scores of {group!r} must have the shape of its units, {list(kept.shape)}; received {received}. "
                "unit_scores(spec, scores) returns them."
            )
        count = int(kept.reshape(-1, kept.shape[-1])[0].sum())
        highest = scores[group].detach().cpu().argsort(dim=-1, stable=True)[..., -count:]
        units[group] = torch.zeros_like(kept).scatter(-1, highest, True)
    return UnitMask(units, spec, names=mask)


def shuffle_units(mask: UnitMask, spec: Structure, *, seed: int) -> UnitMask:
    """Keep as many units of each group as a mask does, at random: the control that keeps their numbers alone.

    Args:
        mask: Says how many stay.
        spec: The symmetries that its groups are of.
        seed: The same seed gives the same units.

    Raises:
        SpecMismatchError: The mask is of another spec.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {group: torch.rand(kept.shape, generator=generator) for group, kept in mask.units.items()}
    return choose_units(mask, spec, drawn)
