"""Wiring: which units the weights that are not zero connect, and which units are dead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.display import TableDict
from ..networks.names import named_tensors
from ..symmetry.groups import PRODUCT, Slot
from ..symmetry.structure import Structure
from .slicing import Units, known_reads


class DeadTable(TableDict[Tensor]):
    """Group -> bool tensor, True for dead units; a dict that prints as a table."""

    header = ("group", "dead units", "units")

    def row(self, name: str, value: Tensor) -> Sequence[str]:
        return name, f"{int(value.sum()):,}", f"{value.numel():,}"


def dead_units(weights: nn.Module | Mapping[str, Tensor], spec: Structure) -> DeadTable:
    """Find the units that do nothing for a network, in its weights or under a mask.

    A unit is dead if all that it sends is zero: the weights by which others read it. It is also dead if all that it
    receives is zero, as it then sends a constant; a bias can hold that. Units that only such units read, or that only
    read such units, are dead too. Units that meet in a product, such as the dimensions in which queries and keys are
    compared, are dead if all of their weights and biases are zero. No unit is dead while others depend on it in another
    way, through a norm or softmax (see ``spec.mixed``), unless it is part of a dead one.

    Args:
        weights: A model, or tensors by name: a mask (True keeps), or weights. What is left out counts as not zero.
        spec: The spec of the network.

    Returns:
        Group -> bool tensor of ``spec.entry_shape(group)``, True for dead units, for every free group.

    Raises:
        SpecMismatchError: The spec is for another network.
        UnitError: The spec does not know which axes are read.

    Example:
        >>> from hf_lottery import discover
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> spec = discover(model, (torch.randn(5, 4),))
        >>> dead_units({"2.weight": torch.tensor([[True, False, True], [False, False, True]])}, spec)
        group        dead units  units
        0.weight[0]           1      3
    """
    spec.check_fits(weights)
    tensors = named_tensors(weights) if isinstance(weights, nn.Module) else weights
    wiring = Wiring(spec, {name: tensor != 0 for name, tensor in tensors.items()})
    dead = _either(wiring.silent(), wiring.deaf())
    while wiring.remove(dead):
        dead = _either(wiring.silent(), wiring.deaf())
    return DeadTable({group: torch.from_numpy(units) for group, units in dead.items()})


class Wiring:
    """The weights of a network that are not zero, by the units that they connect.

    Args:
        spec: The spec of the network.
        nonzero: Name of a tensor -> which of its elements are not zero. Tensors that are left out have no zeros.

    Raises:
        UnitError: The spec does not know which axes are read.
    """

    def __init__(self, spec: Structure, nonzero: Mapping[str, Tensor]):
        self.spec, reads = spec, known_reads(spec)
        self._parts = [
            part for name in spec.tensors for part in _parts(spec, name, reads.get(name, ()), nonzero.get(name))
        ]
        mixed = spec.mixed or {}
        self._apart = {group for group in spec.free if group not in mixed}  # weights alone connect their units
        self._meeting = {group for group, by in mixed.items() if by == PRODUCT}
        self._read = {slot.group for part in self._parts for slot in part.slots if part.sends(slot)}
        self._written = {slot.group for part in self._parts for slot in part.slots if part.receives(slot)}

    def silent(self) -> dict[str, np.ndarray]:
        """Return the units that send nothing; if not only weights read them, they must be made of zeros."""
        sending = self._apart & self._read
        found = self._any(lambda part, slot: part.sends(slot) or slot.group not in sending)
        quiet = self._apart | self._meeting
        return {group: ~sent if group in quiet else np.zeros_like(sent) for group, sent in found.items()}

    def deaf(self) -> dict[str, np.ndarray]:
        """Return the units that receive nothing and that only weights read. What such a unit sends is constant."""
        found = self._any(lambda part, slot: part.receives(slot))
        sure = self._apart & self._read & self._written
        return {group: ~got if group in sure else np.zeros_like(got) for group, got in found.items()}

    def partly_deaf(self) -> dict[str, np.ndarray]:
        """Return the units that receive nothing through at least one of the tensors that write them."""
        found = self._nothing()
        for name in {part.name for part in self._parts}:
            parts = [part for part in self._parts if part.name == name]
            got = self._any(lambda part, slot: part.receives(slot), parts=parts)
            for group in {slot.group for part in parts for slot in part.slots if part.receives(slot)} & found.keys():
                found[group] |= ~got[group]
        return found

    def sending_elsewhere(self, places: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the units that send anything at other places than these.

        Args:
            places: Name of a tensor -> bools along the axis that is read.
        """
        return self._any(lambda part, slot: part.sends(slot), lambda part, slot: part.cells & ~part.along(slot, places))

    def sent_by(self, units: Units) -> dict[str, np.ndarray]:
        """Return, by tensor, which of its elements that are not zero are read from some units."""
        found: dict[str, np.ndarray] = {}
        for part in self._parts:
            mine = np.zeros_like(part.cells)
            for slot in part.slots:
                if slot.group in units and part.sends(slot):
                    mine |= part.cells & part.spread(slot, units[slot.group])
            if mine.any():
                whole = found.setdefault(part.name, np.zeros(self.spec.shapes[part.name], dtype=np.bool_))
                whole[part.index] = mine.reshape(part.shape)
        return found

    def remove(self, units: Units) -> bool:
        """Set everything of some units to zero, and return whether any of it was not."""
        changed = False
        for part in self._parts:
            for slot in part.slots:
                if slot.group in units and units[slot.group].any():
                    gone = part.cells & part.spread(slot, units[slot.group])
                    changed = changed or bool(gone.any())
                    part.cells &= ~gone
        return changed

    def clear(self, elements: Mapping[str, np.ndarray]) -> None:
        """Set elements of tensors to zero, given bools of the tensors' shapes by name."""
        for part in self._parts:
            if part.name in elements:
                part.cells &= ~elements[part.name][part.index].reshape(part.cells.shape)

    def _nothing(self) -> dict[str, np.ndarray]:
        return {group: np.zeros(self.spec.entry_shape(group), dtype=np.bool_) for group in self.spec.free}

    def _any(
        self,
        counts: Callable[[_Part, Slot], bool],
        cells: Callable[[_Part, Slot], np.ndarray] = lambda part, slot: part.cells,
        parts: Sequence[_Part] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the units of free groups that have any element at the slots that count."""
        found = self._nothing()
        for part in self._parts if parts is None else parts:
            for slot in part.slots:
                if slot.group in found and counts(part, slot):
                    found[slot.group] |= part.gathered(slot, cells(part, slot))
        return found


@dataclass
class _Part:
    """A block of a tensor as an array with one dimension for each group that lies on it."""

    name: str
    cells: np.ndarray
    slots: Sequence[Slot]
    reads: Sequence[int]
    index: tuple[np.ndarray, ...]  # the block in the tensor
    shape: tuple[int, ...]  # the shape of the block
    positions: Sequence[np.ndarray]

    def sends(self, slot: Slot) -> bool:
        """Whether units send through this tensor's axis."""
        return slot.axis in self.reads

    def receives(self, slot: Slot) -> bool:
        """Whether units receive through this axis: that of a matrix which is read along another one, or looked up."""
        return len(self.shape) > 1 and (slot.axis not in self.reads or len(self.reads) > 1)

    def gathered(self, slot: Slot, cells: np.ndarray) -> np.ndarray:
        """Return whether there is any cell for each unit."""
        dims = (*slot.parents, self.slots.index(slot))
        left = np.asarray(cells.any(axis=tuple(d for d in range(cells.ndim) if d not in dims)))
        return np.moveaxis(left, [sorted(dims).index(d) for d in dims], range(len(dims)))

    def spread(self, slot: Slot, units: np.ndarray) -> np.ndarray:
        """Return bools for units as an array that broadcasts to the cells."""
        grid = np.ix_(*map(np.arange, self.cells.shape))
        return units[(*(grid[parent] for parent in slot.parents), grid[self.slots.index(slot)])]

    def along(self, slot: Slot, places: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return bools for the places of an axis as an array that broadcasts to the cells."""
        if self.name not in places:
            return np.zeros((1,) * self.cells.ndim, dtype=np.bool_)
        here = [size if s.axis == slot.axis else 1 for s, size in zip(self.slots, self.cells.shape, strict=True)]
        return places[self.name][self.positions[slot.axis]].reshape(here)


def _parts(spec: Structure, name: str, reads: Sequence[int], nonzero: Tensor | None) -> Iterator[_Part]:
    whole = None if nonzero is None else nonzero.cpu().numpy()
    for block in spec.tensors[name]:
        slots = block.slots(spec.groups)
        sizes = [spec.groups[slot.group].size for slot in slots]
        flat = [axis.positions.reshape(-1) for axis in block.axes]
        index = np.ix_(*flat)
        cells = np.ones(sizes, dtype=np.bool_) if whole is None else whole[index].reshape(sizes)
        yield _Part(name, cells, slots, reads, index, tuple(map(len, flat)), [axis.positions for axis in block.axes])


def _either(one: Units, other: Units) -> dict[str, np.ndarray]:
    return {group: units | other[group] for group, units in one.items()}
