"""Overlap: how far two masks keep the same weights, parameter by parameter and head by head, against chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..masks.mask import Mask, Overlap, overlap_of
from ..networks.display import TableDict
from ..networks.selection import Patterns, select_names
from ..symmetry.errors import SymmetryError
from ..symmetry.spec import PermutationSpec


class Overlaps(TableDict[Overlap]):
    """Parameter name -> :class:`Overlap`; a dict that prints as a table."""

    header = ("parameter", "overlap", "chance")

    def row(self, name: str, value: Overlap) -> Sequence[str]:
        return name, f"{value.iou:.4f}", f"{value.chance:.4f}"


class PartOverlaps(TableDict[tuple[Overlap, ...]]):
    """Name of a parameter or group -> one :class:`Overlap` for each part; a dict that prints as a table."""

    header = ("name", "parts", "mean overlap", "lowest", "highest", "mean chance")

    def row(self, name: str, value: tuple[Overlap, ...]) -> Sequence[str]:
        ious, chances = zip(*value, strict=True)
        numbers = (np.mean(ious), min(ious), max(ious), np.mean(chances))
        return name, str(len(value)), *(f"{number:.4f}" for number in numbers)


def overlap_by_parameter(
    a: Mask, b: Mask, *, include: Patterns | None = None, exclude: Patterns | None = None
) -> Overlaps:
    """Measure the overlap of two masks in each parameter.

    Args:
        a: One mask.
        b: The other mask, with the same names and shapes.
        include: Names or regular expressions of the parameters to compare; by default all.
        exclude: Names or regular expressions of the parameters to leave out again.

    Returns:
        Parameter name -> ``iou``, intersection over union of the kept weights, and ``chance``, what independent masks
        of the same densities would have in expectation.

    Raises:
        MaskMismatchError: The masks differ in names or shapes.
        ValueError: A pattern matches no parameter.

    Example:
        >>> import torch
        >>> a = Mask({"fc.weight": torch.tensor([[True, True], [False, False]])})
        >>> b = Mask({"fc.weight": torch.tensor([[True, False], [True, False]])})
        >>> overlap_by_parameter(a, b)
        parameter  overlap  chance
        fc.weight   0.3333  0.3333
    """
    a.check_same_structure(b)
    chosen = select_names(a, include=include, exclude=exclude)
    return Overlaps({name: overlap_of([(a[name].numpy(), b[name].numpy())]) for name in chosen})


def overlap_by_head(
    a: Mask, b: Mask, heads: int, *, include: Patterns, exclude: Patterns | None = None, axis: int = 0
) -> PartOverlaps:
    """Measure the overlap of two masks in each attention head of some parameters.

    Args:
        a: One mask.
        b: The other mask, with the same names and shapes.
        heads: The number of heads. Each head is an equal share of successive indices.
        include: Names or regular expressions of the parameters, such as ``r"(query|key|value)\\.weight"``.
        exclude: Names or regular expressions of the parameters to leave out again.
        axis: The axis that the heads share: 0 for the weights that make queries, keys and values, 1 for the weight that
            reads the heads. (For the ``Conv1D`` of GPT-2 it is the other way round.) A fused ``q|k|v`` weight has 3
            times the heads.

    Returns:
        Parameter name -> one :class:`Overlap` for each head. Chance follows from the densities in the head.

    Raises:
        ValueError: No parameter is chosen, or the axis is not a multiple of the heads.
        MaskMismatchError: The masks differ in names or shapes.
    """
    a.check_same_structure(b)
    chosen = select_names(a, include=include, exclude=exclude)
    if not chosen:
        raise ValueError("include and exclude must leave a parameter of the masks; received ones that leave none.")
    found = PartOverlaps()
    for name in chosen:
        shape = list(a[name].shape)
        if not -len(shape) <= axis < len(shape) or heads < 1 or shape[axis] % heads:
            raise ValueError(
                f"axis {axis} of {name!r} must be a multiple of the heads; received shape {shape} and {heads} heads. "
                "Choose the axis, or leave the parameter out."
            )
        parts = (np.split(mask[name].numpy(), heads, axis) for mask in (a, b))
        found[name] = tuple(overlap_of([part]) for part in zip(*parts, strict=True))
    return found


def overlap_by_group(
    a: Mask, b: Mask, spec: PermutationSpec, *, include: Patterns, exclude: Patterns | None = None
) -> PartOverlaps:
    """Measure the overlap of two masks in each index of groups of a spec: each attention head, each unit of a layer.

    All parameters that an index has a part in count together, such as the query, key, value and output weights of a
    head.

    Args:
        a: One mask.
        b: The other mask, with the same names and shapes.
        spec: The symmetries of the network, as :func:`discover` finds them.
        include: Names or regular expressions of groups without parents.
        exclude: Names or regular expressions of the groups to leave out again.

    Returns:
        Group name -> one :class:`Overlap` for each index. Chance follows from the densities in each part of the index.

    Raises:
        SymmetryError: A pattern matches no group, a group has parents, or it lies on no parameter of the masks.
        SpecMismatchError: The masks do not fit the spec.
        MaskMismatchError: The masks differ in names or shapes.
    """
    a.check_same_structure(b)
    spec.check_fits(a)
    found = PartOverlaps()
    for group in select_names(spec.groups, include=include, exclude=exclude, what="a group", error=SymmetryError):
        if parents := spec.groups[group].parents:
            raise SymmetryError(f"group {group!r} must have no parents; received {parents}. Take {parents[0]!r}.")
        parts = list(_parts(a, b, spec, group))
        if not parts:
            raise SymmetryError(f"group {group!r} must lie on a parameter of the masks; received masks without it.")
        found[group] = tuple(overlap_of(pairs) for pairs in zip(*parts, strict=True))
    return found


def _parts(a: Mask, b: Mask, spec: PermutationSpec, group: str) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """For each place where a group lies on a parameter: for each index, its entries in both masks."""
    for name in a:
        mine, theirs = a[name].numpy(), b[name].numpy()
        for block in spec.tensors[name]:
            lines = [axis.positions.reshape(-1) for axis in block.axes]
            for k, axis in enumerate(block.axes):
                if group in axis.leaves:
                    own = np.moveaxis(axis.positions, axis.leaves.index(group), 0)
                    grids = [np.ix_(*lines[:k], one.reshape(-1), *lines[k + 1 :]) for one in own]
                    yield [(mine[grid], theirs[grid]) for grid in grids]
