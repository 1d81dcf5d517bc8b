"""Objective: the scores that assignments maximise, from the places (ties) where groups meet in two networks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..symmetry.groups import Axis, Block, Slot
from ..symmetry.spec import PermutationSpec
from .assignment import Family, Terms, summed_terms

Entries = Mapping[str, np.ndarray]
_SMALL = 2**15  # elements; larger blocks are not copied to be joined


class Tie(Protocol):
    """One place where groups meet: a block of a weight, or an axis of activations.

    Attributes:
        slots: The occurrences of groups here.
        groups: Their names.
        norm: The largest value that is possible.
        elements: Number of elements compared.
    """

    slots: tuple[Slot, ...]
    groups: frozenset[str]
    norm: float
    elements: int

    def terms(self, family: Family, entries: Entries) -> Terms:
        """Return the scores of the family's groups, given the entries of all the others."""
        ...

    def quadratic(self, family: Family) -> bool:
        """Tell whether the family meets itself here, so that the scores are only a linearisation."""
        ...

    def value(self, entries: Entries) -> float:
        """Return the inner product of the target with the permuted source."""
        ...


class Cluster(NamedTuple):
    """Slots of one occurrence of a family in a block.

    Attributes:
        key: The members of the family that are here, in order.
        members: Their slots.
        outer: The slots of the parents of its head.
        rest: The slots of all others.
        held: The outer slots and the rest, parents before the groups inside them.
    """

    key: tuple[str, ...]
    members: tuple[int, ...]
    outer: tuple[int, ...]
    rest: tuple[int, ...]
    held: tuple[int, ...]


def clusters(slots: Sequence[Slot], family: Family) -> list[Cluster]:
    """Return every occurrence of a family in a block."""
    found = []
    for head, slot in enumerate(slots):
        if slot.group != family.head:
            continue
        mine = {slots[k].group: k for k in range(len(slots) - 1, -1, -1) if k == head or head in slots[k].parents}
        key = tuple(name for name in family.members if name in mine)
        members = tuple(mine[name] for name in key)
        rest = tuple(k for k in range(len(slots)) if k not in members and k not in slot.parents)
        held = tuple(sorted((*slot.parents, *rest), key=lambda k: len(slots[k].parents)))
        found.append(Cluster(key, members, slot.parents, rest, held))
    return found


def leaf_dimensions(spec: PermutationSpec, axes: Sequence[Axis]) -> tuple[int, ...]:
    """Return the sizes of all leaves of some axes, in order."""
    return tuple(spec.groups[leaf].size for axis in axes for leaf in axis.leaves)


class WeightTie:
    """Blocks of weights in both networks that lie on the same groups.

    They are tensors with one dimension per leaf, and a last one over the blocks.
    """

    def __init__(self, slots: tuple[Slot, ...], target: Tensor, source: Tensor):
        self.slots = slots
        self.groups = frozenset(slot.group for slot in slots)
        self._target, self._source = target, source
        self.elements = target.numel()
        ours, theirs = (torch.linalg.vector_norm(tensor.flatten(0, -2), dim=0) for tensor in (target, source))
        self.norm = float(ours @ theirs)
        self._order = sorted(range(len(slots)), key=lambda k: len(slots[k].parents))
        self._arranged: dict[tuple[int, ...], Tensor] = {}
        self._clusters: dict[tuple[str, ...], list[Cluster]] = {}

    @classmethod
    def join(cls, spec: PermutationSpec, blocks: Iterable[tuple[Block, Tensor, Tensor]]) -> list[WeightTie]:
        """Tie blocks, given each with its target and source; small ones that lie on the same groups are joined.

        These are the vectors of a layer, mostly: one product serves them all.
        """
        alike: dict[Any, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for number, (block, *networks) in enumerate(blocks):
            leaves = leaf_dimensions(spec, block.axes)
            like = networks[0].dtype, networks[0].device
            key = block.slots(spec.groups), *(like if math.prod(leaves) <= _SMALL else (number,))
            for tensors, tensor in zip(alike[key], _taken(block, networks), strict=True):
                tensors.append(tensor.reshape(*leaves, 1))
        return [
            cls(slots, *(torch.cat(tensors, -1) if len(tensors) > 1 else tensors[0] for tensors in networks))
            for (slots, *_), networks in alike.items()
        ]

    def quadratic(self, family: Family) -> bool:
        return sum(slot.group in family.members for slot in self.slots) > len(self.groups & set(family.members))

    def value(self, entries: Entries) -> float:
        return float((self._target * self._moved(entries, self._order)).sum(dtype=torch.float64))

    def terms(self, family: Family, entries: Entries) -> Terms:
        if family.members not in self._clusters:
            self._clusters[family.members] = clusters(self.slots, family)
        return summed_terms({cluster.key: self._gram(cluster, entries)} for cluster in self._clusters[family.members])

    def _gram(self, cluster: Cluster, entries: Entries) -> np.ndarray:
        """Return inner products ``[*outer, *destination, *source]`` over all other dimensions."""
        outer = [self._target.shape[k] for k in cluster.outer]
        members = [self._target.shape[k] for k in cluster.members]
        order = (*cluster.outer, *cluster.members, *cluster.rest, len(self.slots))
        shape = (math.prod(outer), math.prod(members), -1)
        if order not in self._arranged:
            self._arranged[order] = self._target.permute(order).reshape(shape)
        target = self._arranged[order]
        moving = [self.slots[k] for k in cluster.rest if self.slots[k].group in entries]
        if any(parent in cluster.members for slot in moving for parent in slot.parents):
            rows = []  # one product per destination, as the other groups move differently for each
            for n, at in enumerate(np.ndindex(*members)):
                fixed = dict(zip(cluster.members, at, strict=True))
                moved = self._moved(entries, cluster.held, fixed).permute(order).reshape(shape)
                rows.append(torch.einsum("bk,bfk->bf", target[:, n], moved))
            gram = torch.stack(rows, 1)
        else:
            moved = self._moved(entries, cluster.held).permute(order).reshape(shape)
            gram = target @ moved.transpose(1, 2) if outer else (target[0] @ moved[0].T)
        return gram.cpu().numpy().reshape(*outer, *members, *members)

    def _moved(self, entries: Entries, slots: Sequence[int], fixed: Mapping[int, int] | None = None) -> Tensor:
        """Permute some slots of the source, parents first.

        ``fixed`` holds destination indices of parents that are not among the slots.
        """
        moved = self._source
        for k in slots:
            entry = entries.get(self.slots[k].group)
            if entry is None:
                continue
            parents = self.slots[k].parents
            held = tuple((fixed or {}).get(parent, slice(None)) for parent in parents)
            entry = entry[held]
            free = [parent for parent, at in zip(parents, held, strict=True) if isinstance(at, slice)]
            index = torch.tensor(entry, device=moved.device)
            if not free:
                moved = moved.index_select(k, index)
                continue
            front = moved.movedim((*free, k), tuple(range(len(free) + 1)))
            grid = torch.meshgrid(*(torch.arange(n, device=moved.device) for n in index.shape), indexing="ij")
            moved = front[(*grid[:-1], index)].movedim(tuple(range(len(free) + 1)), (*free, k))
        return moved


class CorrelationTie:
    """Correlations of one axis of activations, target by source, with one dimension per leaf and network."""

    def __init__(self, spec: PermutationSpec, axis: Axis, correlation: np.ndarray):
        self.slots = Block((axis,)).slots(spec.groups)
        self.groups = frozenset(axis.leaves)
        self._array = correlation.reshape(leaf_dimensions(spec, (axis, axis)))
        self.norm, self.elements = float(len(correlation)), len(correlation)

    def quadratic(self, family: Family) -> bool:
        return len(self.slots) != len(self.groups)

    def value(self, entries: Entries) -> float:
        return float(self._taken(entries, tuple(range(len(self.slots))), ()).sum())

    def terms(self, family: Family, entries: Entries) -> Terms:
        return summed_terms({cluster.key: self._scores(cluster, entries)} for cluster in clusters(self.slots, family))

    def _scores(self, cluster: Cluster, entries: Entries) -> np.ndarray:
        array = self._taken(entries, (*cluster.outer, *cluster.rest), cluster.members)
        return array.sum(axis=tuple(range(len(cluster.outer), len(cluster.outer) + len(cluster.rest))))

    def _taken(self, entries: Entries, slots: tuple[int, ...], kept: tuple[int, ...]) -> np.ndarray:
        """Return ``[*slots, *kept destination, *kept source]``, each index of a slot paired with its source."""
        n, sizes = len(self.slots), self._array.shape
        order = [*slots, *kept]
        grid = dict(zip(order, np.ix_(*(np.arange(sizes[k]) for k in order)), strict=True))
        index: list[np.ndarray] = [np.empty(0)] * (2 * n)
        width = len(order) + len(kept)
        for k in order:
            slot = self.slots[k]
            entry = entries.get(slot.group) if k in slots else None
            source = grid[k] if entry is None else entry[(*(grid[parent] for parent in slot.parents), grid[k])]
            index[k] = grid[k].reshape(*grid[k].shape, *(1 for _ in kept))
            index[n + k] = source.reshape(*source.shape, *(1 for _ in kept))
        for at, k in enumerate(kept):
            index[n + k] = np.arange(sizes[k]).reshape([-1 if d == len(order) + at else 1 for d in range(width)])
        return self._array[tuple(index)]


def _taken(block: Block, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the part of tensors of one shape that a block covers, in the order of its groups."""
    found = list(tensors)
    for k, axis in enumerate(block.axes):
        positions = axis.positions.reshape(-1)
        size = tensors[0].shape[k]
        if positions.size != size or (positions != np.arange(size)).any():
            index = torch.from_numpy(positions)
            found = [tensor.index_select(k, index.to(tensor.device)) for tensor in found]
    return found
