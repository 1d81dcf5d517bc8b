"""Slicing: which indices of every tensor stay when units are cut, and tensors without the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..symmetry.errors import SymmetryError
from ..symmetry.groups import Axis, Block
from ..symmetry.structure import Structure

Units = Mapping[str, np.ndarray]  # group -> bools of the sizes of its parents and its own; True keeps


class UnitError(SymmetryError):
    """Units do not fit a spec, or cannot be cut."""


def known_reads(spec: Structure, *, remedy: str = "Discover the spec again.") -> Mapping[str, tuple[int, ...]]:
    """Return ``spec.reads``.

    Raises:
        UnitError: The spec does not know which axes are read.
    """
    if spec.reads is None:
        raise UnitError(
            "the spec must know which axes its weights read; received one that was written by hand or by an older "
            f"version. {remedy}"
        )
    return spec.reads


def checked_units(spec: Structure, units: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return units as arrays of bools, without the groups that keep everything.

    Args:
        spec: The groups.
        units: Group -> bools of ``spec.entry_shape(group)``, True keeps.

    Raises:
        UnitError: A group is unknown or frozen, its bools are of another shape, it keeps nothing, or it keeps different
            numbers of units for different indices of its parents.
    """
    found = {}
    for name, kept in units.items():
        if name not in spec.groups:
            raise UnitError(
                f"units must be of groups of the spec; received {name!r:.200}. list(spec.free) shows the groups that "
                "may be cut; units of another spec do not fit."
            )
        bools = _bools(name, kept, spec.entry_shape(name))
        if bools.all():
            continue
        if (why := spec.groups[name].frozen) is not None:
            raise UnitError(f"a group that is cut must be free; received {name!r}, frozen: {why}. Leave it out.")
        found[name] = bools
    Slices(spec, found)
    return found


def _bools(name: str, kept: Any, shape: tuple[int, ...]) -> np.ndarray:
    bools = kept.detach().cpu().numpy() if isinstance(kept, Tensor) else np.asarray(kept)
    if bools.dtype != np.bool_ or bools.shape != shape:
        raise UnitError(
            f"the units of {name!r} must be bool of shape {list(shape)}, the sizes of its parents and its own; "
            f"received {bools.dtype} {list(bools.shape)}. Take the shape from spec.entry_shape."
        )
    return bools


class Slices:
    """The indices of every group, and so of every tensor, that stay.

    Args:
        spec: The groups, and where they lie in which tensor.
        units: Group -> bools that say which units stay. Groups that are not named keep everything. What a group says
            about an index of a parent that is cut does not count.

    Attributes:
        spec: As given.
        units: As given.
        sources: Group that is cut -> int64 of the kept sizes of its parents and its own: the old index of every new
            one.

    Raises:
        UnitError: A group keeps nothing, or different numbers of units for different indices of its parents.
    """

    def __init__(self, spec: Structure, units: Units):
        self.spec, self.units = spec, units
        self.sources: dict[str, np.ndarray] = {}
        for name in sorted(units, key=lambda name: len(spec.groups[name].parents)):
            self.sources[name] = self._kept(name)

    def size(self, group: str) -> int:
        """Return how many units of a group stay, of each index of its parents."""
        return self.sources[group].shape[-1] if group in self.sources else self.spec.groups[group].size

    def _kept(self, group: str) -> np.ndarray:
        line = self.spec.groups[group].parents
        grid = np.ix_(*(np.arange(self.size(name)) for name in line))
        at = dict(zip(line, grid, strict=True))
        rows = self.units[group][tuple(self._source(name, at) for name in line)]
        counts = rows.sum(-1)
        if not counts.all() or counts.min() != counts.max():
            raise UnitError(
                f"the group {group!r} must keep at least one unit, and equally many for every index of its parents; "
                f"received {np.unique(counts).tolist()} of {rows.shape[-1]}. Keep more, or leave the group out."
            )
        return np.nonzero(rows)[-1].reshape(*rows.shape[:-1], -1).astype(np.int64)

    def _source(self, group: str, at: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the old index of a group at new indices of it and of its parents."""
        if group not in self.sources:
            return at[group]
        return self.sources[group][(*(at[name] for name in self.spec.groups[group].parents), at[group])]

    def touches(self, name: str) -> bool:
        """Return whether a tensor loses indices, by its name."""
        blocks = self.spec.tensors.get(name, ())
        return any(leaf in self.sources for block in blocks for axis in block.axes for leaf in axis.leaves)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of what stays of a tensor."""
        return tuple(len(places) for places in self._places(name))

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return what stays of a tensor.

        Args:
            name: The tensor's name. A tensor without an entry in the spec stays whole.
            tensor: A tensor of the spec's shape; not changed.

        Returns:
            A new tensor, or the very same object if nothing of it is cut.

        Raises:
            UnitError: The parts of the tensor do not make a rectangle any more.
        """
        if not self.touches(name):
            return tensor
        places = self._places(name)
        new = tensor.new_empty([len(axis) for axis in places])
        written = 0
        for block in self.spec.tensors[name]:
            to = [np.searchsorted(axis, self._new(one)) for axis, one in zip(places, block.axes, strict=True)]
            written += int(np.prod([len(axis) for axis in to]))
            if written > new.numel():
                break
            new[_on(tensor, np.ix_(*to))] = tensor[_on(tensor, self._old(block))]
        if written != new.numel():
            raise UnitError(
                f"the parts of {name!r} that share an axis must keep equally many indices; received units that leave "
                f"{written} elements for the shape {list(new.shape)}. Cut the groups of all parts alike."
            )
        return new

    def _new(self, axis: Axis) -> np.ndarray:
        """Return positions that stand for the new indices of a block's axis: those of the first units of each group."""
        return axis.positions[tuple(slice(self.size(leaf)) for leaf in axis.leaves)].reshape(-1)

    def _places(self, name: str) -> list[np.ndarray]:
        """Return, for each axis of a tensor, the sorted positions that stand for its new indices."""
        blocks = self.spec.tensors[name]
        return [np.unique(np.concatenate([self._new(block.axes[k]) for block in blocks]))
                for k in range(len(blocks[0].axes))]  # fmt: skip

    def _old(self, block: Block) -> tuple[np.ndarray, ...]:
        """Return the old position on each axis of every element of a block that stays, as arrays that broadcast."""
        slots = block.slots(self.spec.groups)
        grid = np.ix_(*(np.arange(self.size(slot.group)) for slot in slots))
        old = [
            self.sources[slot.group][(*(grid[parent] for parent in slot.parents), here)]
            if slot.group in self.sources
            else here
            for slot, here in zip(slots, grid, strict=True)
        ]
        sizes = [self.size(slot.group) for slot in slots]
        return tuple(along_axes(block, positions, sizes) for positions in _positions(block, old))

    def without(self, name: str, tensor: Tensor, axis: int, group: str) -> Tensor:
        """Return a tensor of the same shape with zeros where a cut unit of a group lies on an axis.

        Args:
            name: The tensor's name.
            tensor: The tensor; not changed.
            axis: The axis.
            group: A group that is cut.
        """
        new = tensor.clone()
        for block in self.spec.tensors[name]:
            if group not in block.axes[axis].leaves:
                continue
            slots = block.slots(self.spec.groups)
            sizes = [self.spec.groups[slot.group].size for slot in slots]
            grid = np.ix_(*map(np.arange, sizes))
            slot = next(s for s, at in enumerate(slots) if (at.axis, at.group) == (axis, group))
            kept = self.units[group][(*(grid[parent] for parent in slots[slot].parents), grid[slot])]
            gone = along_axes(block, np.broadcast_to(~kept, np.broadcast_shapes(kept.shape, (1,) * len(sizes))), sizes)
            at = _on(tensor, np.ix_(*(one.positions.reshape(-1) for one in block.axes)))
            new[at] = new[at].masked_fill(torch.tensor(gone, device=tensor.device), 0)
        return new


def _positions(block: Block, indices: list[np.ndarray]) -> Iterator[np.ndarray]:
    at = 0
    for axis in block.axes:
        found = axis.positions[tuple(indices[at : at + len(axis.leaves)])]
        at += len(axis.leaves)
        yield found if found.ndim == len(indices) else found.reshape((1,) * len(indices))


def along_axes(block: Block, values: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Turn values with one dimension per group of a block into values with one dimension per axis.

    Args:
        block: The block.
        values: Values that broadcast to ``sizes``.
        sizes: The number of indices of each group of the block, in order.

    Returns:
        Values that broadcast to the block; an axis along which they do not vary has size 1.
    """
    full, whole, at = [], [], 0
    for axis in block.axes:
        span = range(at, at + len(axis.leaves))
        varies = any(values.shape[d] > 1 for d in span)
        full += [sizes[d] if varies else 1 for d in span]
        whole.append(int(np.prod([sizes[d] for d in span])) if varies else 1)
        at += len(axis.leaves)
    return np.broadcast_to(values, tuple(full)).reshape(whole)


def _on(tensor: Tensor, indices: tuple[np.ndarray, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(index, device=tensor.device) for index in indices)
