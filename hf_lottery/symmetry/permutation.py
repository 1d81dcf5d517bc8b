"""Permutation: one legal reordering of all groups of a spec, applied to weights, buffers and masks.

Convention: ``new[i] = old[p[i]]``, so that permuting ``[10, 20, 30]`` by ``[2, 0, 1]`` gives ``[30, 10, 20]``. An
inner group is indexed by the *destination* of its parents: ``new[h, d] = old[s[h], p[h, d]]``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..masks.mask import Mask
from ..networks.display import html_table
from ..networks.modes import restored_modes
from ..networks.names import named_tensors, unwrap
from ..networks.numbers import check_numbers
from ..storage.hub_mixin import HubMixin
from .errors import SpecMismatchError, SymmetryError
from .groups import Block
from .permutation_file import CONFIG_NAME, ENTRIES_NAME, SPEC_NAME, read_permutation, write_permutation
from .spec_file import read_spec
from .structure import SHOWN, Structure

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..storage.hub_mixin import Where

Tensors = TypeVar("Tensors", Mask, Mapping[str, Tensor])


class Permutation(HubMixin):
    """A permutation of every group of a spec; a group without an entry keeps its order. Immutable.

    Args:
        spec: The groups, and where they lie in which tensor.
        entries: Group name -> ints of shape ``[*sizes of its parents, size]``, every row a permutation of
            ``range(size)``: the source index of every destination index.

    Attributes:
        spec: As given.
        entries: Group name -> read-only int64 array, for the groups that move.

    Raises:
        SymmetryError: An entry is not a permutation of its group, or moves a frozen group.

    Example:
        >>> from hf_lottery.symmetry.groups import Axis, Block, Group
        >>> from hf_lottery.symmetry.spec import PermutationSpec
        >>> spec = PermutationSpec([Group("units", 3)], {"bias": [Block((Axis(("units",), np.arange(3)),))]})
        >>> p = Permutation(spec, {"units": [2, 0, 1]})
        >>> p({"bias": torch.tensor([10, 20, 30])})["bias"].tolist()
        [30, 10, 20]
        >>> (p.inverse() @ p).is_identity
        True
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # equality is by value

    FILES = (CONFIG_NAME, ENTRIES_NAME, SPEC_NAME)

    def __init__(self, spec: Structure, entries: Mapping[str, Any]):
        self.spec = spec
        checked = {name: _checked(spec, name, entry) for name, entry in entries.items()}
        # A group that stays is left out, so that equal permutations have equal entries.
        self.entries = {name: checked[name] for name in spec.groups if name in checked and _moved(checked[name])}
        if frozen := [name for name in self.entries if spec.groups[name].frozen is not None]:
            raise SymmetryError(
                f"group {frozen[0]!r} must keep its order, it is frozen: {spec.groups[frozen[0]].frozen}; "
                "received a permutation of it. Leave its entry out."
            )

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return not self.entries

    def entry(self, group: str) -> np.ndarray:
        """Return the permutation of one group, int64 ``[*sizes of its parents, size]``, also if the group stays."""
        if group in self.entries:
            return self.entries[group]
        return np.broadcast_to(np.arange(self.spec.groups[group].size), self.spec.entry_shape(group))

    def __call__(self, tensors: Tensors) -> Tensors:
        """Permute a mask or a state dict.

        Args:
            tensors: A mask, or a mapping from name to tensor. It may hold a part of the spec's tensors. Tensors without
                dimensions or elements need no entry in the spec.

        Returns:
            A mask for a mask, else a new dict. A tensor that does not move is the very same object.

        Raises:
            SpecMismatchError: A name or shape is not the spec's; nothing was changed.
            TypeError: This is neither a mask nor a mapping of tensors.
        """
        if isinstance(tensors, nn.Module):
            raise TypeError(
                f"a permutation must be called with a mask or a state dict; received {type(tensors).__name__}. "
                "Permute a model in place with permute_(model, permutation)."
            )
        self.spec.check_fits(tensors)
        check_numbers(tensors)
        moved: dict[Any, Tensor] = {}  # tied tensors stay tied
        result = {}
        for name, tensor in tensors.items():
            key = (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), self.spec.tensors.get(name))
            if key not in moved:
                moved[key] = self.move(name, tensor)
            result[name] = moved[key]
        return tensors.permuted(result, self) if isinstance(tensors, Mask) else result  # pyright: ignore[reportReturnType]

    def inverse(self) -> Permutation:
        """Return the permutation that undoes this one."""
        entries = {}
        for name in self.entries:
            grid, source = self.sources(name)
            entries[name] = np.empty(self.spec.entry_shape(name), dtype=np.int64)
            entries[name][source] = grid[-1]
        return Permutation(self.spec, entries)

    def __matmul__(self, other: Permutation) -> Permutation:
        """Compose two permutations: ``p @ q`` applies q first, then p, so that ``(p @ q)(x) == p(q(x))``."""
        if not isinstance(other, Permutation):
            return NotImplemented
        if self.spec is not other.spec and self.spec.fingerprint != other.spec.fingerprint:
            raise SpecMismatchError(
                "two permutations must be of the same spec to be composed; "
                f"received fingerprints {self.spec.fingerprint[:8]} and {other.spec.fingerprint[:8]}."
            )
        self.spec.check_network(other.spec.network)
        entries = {}
        for name in self.entries.keys() | other.entries.keys():
            _, source = self.sources(name)
            entries[name] = np.broadcast_to(other.entry(name)[source], self.spec.entry_shape(name))
        return Permutation(self.spec, entries)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation):
            return NotImplemented
        if self.spec is not other.spec and self.spec.fingerprint != other.spec.fingerprint:
            return False
        return self.entries.keys() == other.entries.keys() and all(
            np.array_equal(entry, other.entries[name]) for name, entry in self.entries.items()
        )

    def __repr__(self) -> str:
        moved = sum(map(_moved, self.entries.values()))
        return f"Permutation({len(self.entries)} of {len(self.spec.free)} free groups move, {moved:,} indices)"

    def _repr_html_(self) -> str:
        rows = [(name, entry.size, _moved(entry)) for name, entry in self.entries.items()]
        return f"<p>{self!r}</p>\n{html_table(('group', 'indices', 'moved'), rows, limit=SHOWN)}"

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the entries, their description and the spec into ``folder``, in one step."""
        write_permutation(folder, self.entries, self.spec.fingerprint, self.spec.save)

    @classmethod
    def from_pretrained(cls, source: str | Path, spec: Structure, **where: Unpack[Where]) -> Permutation:
        """Load a permutation.

        Args:
            source: A folder written by :meth:`save_pretrained`, or the id of a repository on the Hub. It also holds the
                permutation's own spec, ``permutation_spec.json``, which ``PermutationSpec.load`` reads.
            spec: The spec of the model at hand.
            where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            FileNotFoundError: A file is missing.
            SpecMismatchError: The permutation is for another spec.
            SymmetryError: A file is malformed, damaged, or newer than this library.
        """
        folder = cls._folder(source, **where)
        fingerprint, entries = read_permutation(folder)
        if fingerprint != spec.fingerprint:
            raise SpecMismatchError(
                f"the permutation in {source} must be of the given spec, {spec.fingerprint[:8]}; "
                f"received one of spec {fingerprint[:8]}. Load {SPEC_NAME} beside it to compare."
            )
        if (folder / SPEC_NAME).is_file():
            spec.check_network(read_spec(folder / SPEC_NAME).get("network"))
        return cls(spec, entries)

    def move(self, name: str, tensor: Tensor) -> Tensor:
        """Permute one tensor of the spec.

        Args:
            name: The tensor's name. A tensor without an entry in the spec stays.
            tensor: A tensor of the spec's shape; not changed.

        Returns:
            A new tensor, or the very same object if none of its groups moves.
        """
        if not self.moves(name):
            return tensor
        blocks = self.spec.tensors[name]
        sources = [self._block_sources(block) for block in blocks]
        maps = _axis_maps(self.spec.shapes[name], blocks, sources)
        if maps is not None:
            for k, index in enumerate(maps):
                if (index != np.arange(index.size)).any():
                    tensor = tensor.index_select(k, torch.tensor(index, device=tensor.device))
            return tensor
        moved = tensor.clone()
        for block, source in zip(blocks, sources, strict=True):
            to = np.ix_(*(axis.positions.reshape(-1) for axis in block.axes))
            moved[_on(tensor.device, to)] = tensor[_on(tensor.device, source)]
        return moved

    def moves(self, name: str) -> bool:
        """Return whether a tensor of the spec moves, by its name."""
        blocks = self.spec.tensors.get(name, ())
        return any(leaf in self.entries for block in blocks for axis in block.axes for leaf in axis.leaves)

    def _block_sources(self, block: Block) -> list[np.ndarray]:
        """Return, for each axis, the positions that its new elements come from.

        The positions have one dimension per axis of the block. A dimension has size 1 if they do not vary along it.
        """
        slots = block.slots(self.spec.groups)
        sizes = tuple(self.spec.groups[slot.group].size for slot in slots)
        grid = np.ix_(*map(np.arange, sizes))
        source = [
            self.entries[slot.group][(*(grid[parent] for parent in slot.parents), here)]
            if slot.group in self.entries
            else here
            for slot, here in zip(slots, grid, strict=True)
        ]
        found, at = [], np.cumsum([0, *(len(axis.leaves) for axis in block.axes)])
        for k, axis in enumerate(block.axes):
            positions = axis.positions[tuple(source[at[k] : at[k + 1]])]
            shape = positions.shape if positions.ndim else (1,) * len(sizes)
            whole = [1 if set(shape[at[j] : at[j + 1]]) <= {1} else a.positions.size for j, a in enumerate(block.axes)]
            full = [sizes[d] if whole[j] > 1 else 1 for j in range(len(whole)) for d in range(at[j], at[j + 1])]
            found.append(np.broadcast_to(positions, tuple(full)).reshape(whole))
        return found

    def sources(self, group: str) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Return the open grid over a group's parents and the group, and the source index of each of them."""
        line = [*self.spec.groups[group].parents, group]
        grid = np.ix_(*(np.arange(self.spec.groups[name].size) for name in line))
        at = dict(zip(line, grid, strict=True))
        return grid, tuple(
            self.entries[name][(*(at[parent] for parent in self.spec.groups[name].parents), at[name])]
            if name in self.entries
            else at[name]
            for name in line
        )


@torch.no_grad()
def permute_(model: nn.Module, permutation: Permutation) -> None:
    """Permute the parameters and buffers of ``model`` in place, bit for bit; its function stays the same.

    A tied tensor is moved once. Tensors of frozen groups are not touched. Gradients and optimizer state do not move.

    Args:
        model: A model that the permutation's spec fits, on any device and in any precision.
        permutation: The permutation to apply.

    Raises:
        SpecMismatchError: The model is another one, or ties tensors that the permutation moves apart; nothing was
            changed.
        TypeError: One of the two is something else.
    """
    if not isinstance(model, nn.Module) or not isinstance(permutation, Permutation):
        received = f"{type(model).__name__} and {type(permutation).__name__}"
        raise TypeError(
            f"permute_ must be called with a model and a permutation; received {received}. Of a match, pass "
            "match.permutation. Masks and state dicts are permuted by permutation(mask), of a ticket its mask."
        )
    inner = unwrap(model)
    permutation.spec.check_fits(inner)
    for name, tensor in movable_tensors(inner, permutation.spec).items():
        held = tensor.detach()
        if (moved := permutation.move(name, held)) is not held:
            held.copy_(moved)
    forget_caches(inner)


def movable_tensors(model: nn.Module, spec: Structure) -> dict[str, Tensor]:
    """Return the parameters and buffers by name, under the first name those that are tied or show the same memory.

    Args:
        model: A model that the spec fits, without wrappers.
        spec: The spec whose permutations are to move them.

    Raises:
        SpecMismatchError: The model ties tensors that the spec moves apart.
    """
    names: dict[Any, str] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        first = names.setdefault(_place(tensor), name)
        if spec.tensors.get(name) != spec.tensors.get(first):
            raise SpecMismatchError(
                f"tied tensors must move together; received {first!r} and {name!r}, one tensor in this model but of "
                "different groups in the spec. Discover the spec on a model that ties them."
            )
        if first == name:
            found[name] = tensor
    return found


def _place(tensor: Tensor) -> Any:
    """Return what two tensors have in common if to write to one is to write to the other."""
    try:
        at = tensor.data_ptr() if tensor.numel() else 0
    except RuntimeError:  # it has no memory of its own
        at = 0
    return (at, tensor.shape, tensor.stride(), tensor.dtype) if at else id(tensor)


def forget_caches(model: nn.Module) -> None:
    """Call ``train()`` once: some modules keep what they computed from their weights until then."""
    with restored_modes(model):
        model.train()


def random_permutation(spec: Structure, seed: int, groups: Collection[str]) -> Permutation:
    """Draw a permutation without fixed points of some groups: one n-cycle per group and parent index.

    Args:
        spec: The symmetries.
        seed: The same seed gives the same permutation.
        groups: Names of free groups; the others keep their order.
    """
    generator, entries = np.random.default_rng(seed), {}
    for name in groups:
        *outer, size = spec.entry_shape(name)
        rows = [_cycle(size, generator) for _ in range(math.prod(outer))]
        entries[name] = np.array(rows, dtype=np.int64).reshape(*outer, size)
    return Permutation(spec, entries)


def _cycle(size: int, generator: np.random.Generator) -> np.ndarray:
    order = generator.permutation(size)
    cycle = np.empty(size, dtype=np.int64)
    cycle[order] = np.roll(order, 1)
    return cycle


def _axis_maps(shape: tuple[int, ...], blocks: tuple[Block, ...], sources: list) -> list[np.ndarray] | None:
    """Return one source index per position of every axis; None if blocks disagree or an axis depends on another."""
    maps = [np.full(size, -1, dtype=np.int64) for size in shape]
    for block, source in zip(blocks, sources, strict=True):
        for k, (axis, index) in enumerate(zip(block.axes, source, strict=True)):
            to = axis.positions.reshape(-1)
            if index.size != index.shape[k]:
                return None
            index = np.broadcast_to(index.reshape(-1), to.shape)
            if ((maps[k][to] != -1) & (maps[k][to] != index)).any():
                return None
            maps[k][to] = index
    return maps


def _on(device: torch.device, indices) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(index, device=device) for index in indices)


def _moved(entry: np.ndarray) -> int:
    """Count the indices that change place."""
    return int((entry != np.arange(entry.shape[-1])).sum())


def _checked(spec: Structure, name: str, entry: Any) -> np.ndarray:
    """Return an own, read-only int64 copy of an entry, once it is known to be a permutation of its group."""
    if name not in spec.groups:
        raise SymmetryError(
            f"a permutation's entry must name a group of the spec; received {name!r}. "
            "list(spec.groups) shows all names."
        )
    array, shape = np.asarray(entry), spec.entry_shape(name)
    if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
        raise SymmetryError(
            f"the permutation of group {name!r} must be integers of shape {list(shape)}; "
            f"received {array.dtype} {list(array.shape)}."
        )
    array = array.astype(np.int64)
    wrong = (np.sort(array, axis=-1) != np.arange(shape[-1])).any(axis=-1)
    if wrong.any():
        row = array.reshape(-1, shape[-1])[int(np.argmax(wrong))]
        raise SymmetryError(
            f"the permutation of group {name!r} must hold each of 0..{shape[-1] - 1} once; received {row[:8].tolist()}."
        )
    array.flags.writeable = False
    return array
