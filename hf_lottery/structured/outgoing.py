"""Outgoing weights: what the units of a group send leaves through these, and they are zero where units are cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..symmetry.structure import Structure
from .slicing import Slices, UnitError


def outgoing_axes(spec: Structure, first: Mapping[str, str]) -> dict[str, list[tuple[str, int]]]:
    """Return, for each group, the (tensor, axis) pairs through which its units send.

    Units that are read by no weight, such as the dimensions in which queries and keys are compared, are multiplied with
    each other: of these, all that makes them counts.

    Args:
        spec: The groups.
        first: The first name of each tensor for every name of it. The pairs have first names.

    Raises:
        UnitError: The spec does not know which axes are read.
    """
    if spec.reads is None:
        raise UnitError(
            "the spec must know which axes of weights are read; received a spec of an older version, or one that was "
            "written by hand. Discover it again."
        )
    reads: Mapping[str, Iterable[int]] = spec.reads
    found = {}
    for group, places in spec.members.items():
        sends = [(tensor, axis) for tensor, axis in places if axis in reads.get(tensor, ())] or places
        found[group] = list(dict.fromkeys((first[tensor], axis) for tensor, axis in sends))
    return found


def zeroed(name: str, tensor: Tensor, slices: Slices, sends: Mapping[str, list[tuple[str, int]]]) -> Tensor:
    """Return a tensor in which everything that the cut units send is zero.

    Args:
        name: The tensor's name.
        tensor: The tensor; not changed.
        slices: Which units are cut.
        sends: What :func:`outgoing_axes` returned.

    Returns:
        A new tensor, or the very same object if it sends nothing of these units.
    """
    for group in slices.units:
        for axis in (axis for at, axis in sends[group] if at == name):
            tensor = slices.without(name, tensor, axis, group)
    return tensor
