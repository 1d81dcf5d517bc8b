"""Overlap: how far two masks keep the same weights, parameter by parameter and head by head, against chance."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..masks.mask import Mask, MaskMismatchError, Overlap
from ..symmetry.errors import SymmetryError
from ..symmetry.spec import PermutationSpec


def overlap_by_parameter(a: Mask, b: Mask) -> dict[str, Overlap]:
    """The overlap of two masks in each parameter.

    Args:
        a: One mask.
        b: The other, of the same names and shapes.

    Returns:
        Parameter name -> ``iou``, intersection over union of the kept weights, and ``chance``, what independent masks
        of the same densities would have in expectation.

    Raises:
        MaskMismatchError: The masks differ in names or shapes.

    Example:
        >>> import torch
        >>> a = Mask({"fc.weight": torch.tensor([[True, True], [False, False]])})
        >>> b = Mask({"fc.weight": torch.tensor([[True, False], [True, False]])})
        >>> overlap_by_parameter(a, b)["fc.weight"].iou == overlap_by_parameter(a, b)["fc.weight"].chance == 1 / 3
        True
    """
    _check(a, b)
    return {name: _overlap([(entry.numpy(), b[name].numpy())]) for name, entry in a.items()}


def overlap_by_head(
    a: Mask, b: Mask, heads: int, names: str | Iterable[str], *, axis: int = 0
) -> dict[str, tuple[Overlap, ...]]:
    """The overlap of two masks in each attention head of some parameters.

    Args:
        a: One mask.
        b: The other, of the same names and shapes.
        heads: Number of heads, each of which is as many successive indices.
        names: The parameters: names, or a regular expression such as ``r"(query|key|value)\\.weight"``.
        axis: Where the heads lie: 0 for the weights that make queries, keys and values, 1 for the one that reads the
            heads (for the ``Conv1D`` of GPT-2 the other way round). A fused ``q|k|v`` counts as 3 times the heads.

    Returns:
        Parameter name -> one :class:`Overlap` a head; chance is by the densities in the head.

    Raises:
        ValueError: No parameter is meant, or the axis is not a multiple of the heads.
        MaskMismatchError: The masks differ in names or shapes.
    """
    _check(a, b)
    chosen = [n for n in a if re.search(names, n)] if isinstance(names, str) else list(names)
    if not chosen or not all(name in a for name in chosen):
        wrong = next((name for name in chosen if name not in a), names)
        raise ValueError(f"`names` must name parameters of the masks; received {wrong!r}. Print the masks' keys.")
    found = {}
    for name in chosen:
        shape = list(a[name].shape)
        if not -len(shape) <= axis < len(shape) or heads < 1 or shape[axis] % heads:
            raise ValueError(
                f"axis {axis} of {name!r} must be a multiple of the heads; received shape {shape} and {heads} heads. "
                "Choose the axis, or leave the parameter out."
            )
        parts = (np.split(mask[name].numpy(), heads, axis) for mask in (a, b))
        found[name] = tuple(_overlap([part]) for part in zip(*parts, strict=True))
    return found


def overlap_by_group(
    a: Mask, b: Mask, spec: PermutationSpec, groups: str | Iterable[str]
) -> dict[str, tuple[Overlap, ...]]:
    """The overlap of two masks in each index of groups of a spec: each head of an attention, each unit of a layer.

    All parameters that an index has a part in count together: query, key, value and output weights of a head.

    Args:
        a: One mask.
        b: The other, of the same names and shapes.
        spec: The symmetries of the network, as :func:`discover` finds them.
        groups: Groups without parents: names, or a regular expression.

    Returns:
        Group name -> one :class:`Overlap` an index; chance is by the densities in each of its parts.

    Raises:
        SymmetryError: A group is unknown or has parents, or lies on no parameter of the masks.
        SpecMismatchError: The masks are not of the spec.
        MaskMismatchError: The masks differ in names or shapes.
    """
    _check(a, b)
    spec.check_fits(a)
    found = {}
    for group in spec.select(groups):
        if parents := spec.groups[group].parents:
            raise SymmetryError(f"group {group!r} must have no parents; received {parents}. Take {parents[0]!r}.")
        parts = list(_parts(a, b, spec, group))
        if not parts:
            raise SymmetryError(f"group {group!r} must lie on a parameter of the masks; received masks without it.")
        found[group] = tuple(_overlap(pairs) for pairs in zip(*parts, strict=True))
    return found


def _parts(a: Mask, b: Mask, spec: PermutationSpec, group: str) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """For each place where a group lies on a parameter, the entries of both masks of each of its indices."""
    for name in a:
        mine, theirs = a[name].numpy(), b[name].numpy()
        for block in spec.tensors[name]:
            lines = [axis.positions.reshape(-1) for axis in block.axes]
            for k, axis in enumerate(block.axes):
                if group in axis.leaves:
                    own = np.moveaxis(axis.positions, axis.leaves.index(group), 0)
                    grids = [np.ix_(*lines[:k], one.reshape(-1), *lines[k + 1 :]) for one in own]
                    yield [(mine[grid], theirs[grid]) for grid in grids]


def _overlap(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Overlap:
    """As :meth:`Mask.overlap`, each pair a parameter of its own."""
    both = kept = chance = 0.0
    for mine, theirs in pairs:
        left, right = int(mine.sum()), int(theirs.sum())
        both, kept = both + int((mine & theirs).sum()), kept + left + right
        chance += left * right / max(mine.size, 1)
    return Overlap(both / (kept - both), chance / (kept - chance)) if kept else Overlap(1.0, 1.0)


def _check(a: Mask, b: Mask) -> None:
    if only := a.keys() ^ b.keys():
        raise MaskMismatchError(f"two masks must cover the same parameters; received {min(only)!r} in one only.")
    a.check_fits(b)
