"""The plain data of a spec: groups, and the blocks that say where they lie in a tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .errors import SymmetryError

KERNEL = "a convolution kernel's axis"  # why such an axis is frozen; no unit of a network lies on it
PRODUCT = "a product of activations"  # what mixes units that are multiplied with each other and summed, as in attention


@dataclass(frozen=True)
class Group:
    """One class of axes that are permuted together.

    Attributes:
        name: A unique, readable name such as ``encoder.layers.0.fc1.weight[0]``.
        size: Number of indices.
        parents: Groups on whose index this permutation may depend, outermost first, closed under ancestors.
        frozen: Why the group may not be permuted; None if it may.
    """

    name: str
    size: int
    parents: tuple[str, ...] = ()
    frozen: str | None = None


@dataclass(frozen=True)
class Axis:
    """One axis of one block of a tensor.

    Attributes:
        leaves: Group names, outermost first; may be empty where the block has one index on this axis.
        positions: Where along the tensor's axis each multi-index lies, int64; its shape is the sizes of the leaves.
    """

    leaves: tuple[str, ...]
    positions: np.ndarray

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Axis):
            return NotImplemented
        return self.leaves == other.leaves and np.array_equal(self.positions, other.positions)

    def __hash__(self) -> int:
        return hash((self.leaves, self.positions.shape))


class Slot(NamedTuple):
    """One occurrence of a group in a block: its axis, and the slots that hold its parents."""

    axis: int
    group: str
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """A part of a tensor, the product of its axes. The blocks of a tensor are disjoint and cover it."""

    axes: tuple[Axis, ...]

    def slots(self, groups: Mapping[str, Group]) -> tuple[Slot, ...]:
        """Return the groups of this block in order, each with its parents: on its own axis first, else on another.

        Raises:
            SymmetryError: A parent is not in the block, or it is not clear which of its occurrences is meant.
        """
        places = [(axis, name) for axis, one in enumerate(self.axes) for name in one.leaves]
        found = []
        for axis, name in places:
            parents = tuple(_parent_slot(places, axis, name, parent) for parent in groups[name].parents)
            found.append(Slot(axis, name, parents))
        return tuple(found)


def _parent_slot(places: list[tuple[int, str]], axis: int, name: str, parent: str) -> int:
    everywhere = [slot for slot, (_, other) in enumerate(places) if other == parent]
    here = [slot for slot in everywhere if places[slot][0] == axis]
    candidates = here or everywhere
    if len(candidates) != 1:
        raise SymmetryError(
            f"group {name!r} must lie with its parent {parent!r}, once on its axis or once in the block; "
            f"received {len(candidates)} occurrences of it. Freeze the group, or make it independent of the parent."
        )
    return candidates[0]


def check_group(group: Group, groups: Mapping[str, Group]) -> None:
    """Check the size of a group, and that its parents exist and are closed under ancestors."""
    if group.size < 1:
        raise SymmetryError(f"the size of group {group.name!r} must be positive; received {group.size}.")
    for number, parent in enumerate(group.parents):
        if parent not in groups:
            raise SymmetryError(f"a parent of group {group.name!r} must be a group; received {parent!r}.")
        if not set(groups[parent].parents) <= set(group.parents[:number]):
            raise SymmetryError(
                f"the parents of group {group.name!r} must be closed under ancestors, outermost first; "
                f"received {group.parents} although {parent!r} has {groups[parent].parents}."
            )


def check_blocks(name: str, blocks: tuple[Block, ...], groups: Mapping[str, Group]) -> tuple[int, ...]:
    """Check that blocks are disjoint and cover a shape, and return that shape."""
    if not blocks or len({len(block.axes) for block in blocks}) != 1:
        raise SymmetryError(f"the blocks of {name!r} must have one axis per tensor dimension; received {len(blocks)}.")
    for block in blocks:
        for axis in block.axes:
            _check_axis(name, axis, groups)
        block.slots(groups)
    shape = tuple(max(int(block.axes[k].positions.max()) + 1 for block in blocks) for k in range(len(blocks[0].axes)))
    covered = sum(math.prod(axis.positions.size for axis in block.axes) for block in blocks)
    overlap = any(_overlap(a, b) for number, a in enumerate(blocks) for b in blocks[:number])
    if overlap or covered != math.prod(shape):
        raise SymmetryError(
            f"the blocks of {name!r} must be disjoint and cover its shape {list(shape)}; "
            f"received {covered} elements{' with overlap' if overlap else ''}."
        )
    return shape


def _check_axis(name: str, axis: Axis, groups: Mapping[str, Group]) -> None:
    if unknown := [leaf for leaf in axis.leaves if leaf not in groups]:
        raise SymmetryError(f"an axis of {name!r} must consist of groups; received {unknown[0]!r}.")
    sizes, positions = tuple(groups[leaf].size for leaf in axis.leaves), axis.positions
    if positions.shape != sizes or positions.dtype != np.int64:
        raise SymmetryError(
            f"the positions of {axis.leaves} in {name!r} must be int64 of shape {list(sizes)}; "
            f"received {positions.dtype} {list(positions.shape)}."
        )
    flat = positions.reshape(-1)
    if flat.min() < 0 or np.unique(flat).size < flat.size:
        raise SymmetryError(
            f"the positions of {axis.leaves} in {name!r} must be 0 or more, each once; received "
            f"{np.unique(flat).size} of {flat.size} from {flat.min()} on."
        )


def _overlap(a: Block, b: Block) -> bool:
    return all(np.isin(x.positions, y.positions).any() for x, y in zip(a.axes, b.axes, strict=True))


def axis_to_json(axis: Axis) -> dict[str, Any]:
    """Describe an axis as JSON: its positions as ``start + strides . index`` if they are regular, else as a list."""
    positions = axis.positions
    start, strides = int(positions.reshape(-1)[0]), []
    for k, size in enumerate(positions.shape):
        neighbour = tuple(int(k == j) for j in range(positions.ndim))
        strides.append(int(positions[neighbour]) - start if size > 1 else 0)
    if np.array_equal(positions, _arithmetic(start, strides, positions.shape)):
        return {"leaves": list(axis.leaves), "start": start, "strides": strides}
    return {"leaves": list(axis.leaves), "positions": positions.reshape(-1).tolist()}


def axis_from_json(data: Mapping[str, Any], sizes: Mapping[str, int]) -> Axis:
    """Read an axis that :func:`axis_to_json` described; ``sizes`` are those of the groups."""
    leaves = tuple(data["leaves"])
    shape = tuple(sizes[leaf] for leaf in leaves)
    if "positions" in data:
        return Axis(leaves, np.array(data["positions"], dtype=np.int64).reshape(shape))
    return Axis(leaves, _arithmetic(data["start"], data["strides"], shape))


def _arithmetic(start: int, strides: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    grid = np.full(tuple(shape), start, dtype=np.int64)
    for k, stride in enumerate(strides):
        grid += stride * np.arange(shape[k]).reshape([-1 if j == k else 1 for j in range(len(shape))])
    return grid
