"""Permutation: one legal reordering of all groups of a spec, applied to weights, buffers and masks.

Convention: ``new[i] = old[p[i]]``, so that permuting ``[10, 20, 30]`` by ``[2, 0, 1]`` gives ``[30, 10, 20]``. An
inner group is indexed by the *destination* of its parents: ``new[h, d] = old[s[h], p[h, d]]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..masks.mask import Mask
from ..networks.names import plain_name, unwrap
from ..storage.hub_mixin import HubMixin
from .errors import SpecMismatchError, SymmetryError
from .permutation_file import CONFIG_NAME, ENTRIES_NAME, SPEC_NAME, read_permutation, write_permutation

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..storage.hub_mixin import Where
    from .groups import Block
    from .spec import PermutationSpec

__all__ = ["Permutation", "SpecMismatchError", "SymmetryError", "permute_"]

Tensors = TypeVar("Tensors", Mask, Mapping[str, Tensor])


class Permutation(HubMixin):
    """A permutation of every group of a spec; a group without an entry keeps its order. Immutable.

    Args:
        spec: The groups, and where they lie in which tensor.
        entries: Group name -> ints of shape ``[*sizes of its parents, size]``, every row a permutation of
            ``range(size)``: the source index of every destination index.

    Attributes:
        spec: As given.
        entries: Group name -> read-only int64 array; only the groups that move.
        report: The :class:`hf_lottery.alignment.matching.MatchReport` of the matching that found it; None otherwise.

    Raises:
        SymmetryError: An entry is not a permutation of its group, or moves a frozen group.

    Example:
        >>> from hf_lottery.symmetry.spec import Axis, Block, Group, PermutationSpec
        >>> spec = PermutationSpec([Group("units", 3)], {"bias": [Block((Axis(("units",), np.arange(3)),))]})
        >>> p = Permutation(spec, {"units": [2, 0, 1]})
        >>> p({"bias": torch.tensor([10, 20, 30])})["bias"].tolist()
        [30, 10, 20]
        >>> (p.inverse() @ p).is_identity
        True
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # equality is by value

    FILES = (CONFIG_NAME, ENTRIES_NAME, SPEC_NAME)

    def __init__(self, spec: PermutationSpec, entries: Mapping[str, Any]):
        self.spec = spec
        self.report: Any = None
        checked = {name: _checked(spec, name, entry) for name, entry in entries.items()}
        # A group that stays is left out, so that equal permutations have equal entries.
        self.entries = {name: checked[name] for name in spec.groups if name in checked and _moves(checked[name])}
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
        """The permutation of one group, int64 ``[*sizes of its parents, size]``, also if it stays."""
        if group in self.entries:
            return self.entries[group]
        return np.broadcast_to(np.arange(self.spec.groups[group].size), _entry_shape(self.spec, group))

    def __call__(self, tensors: Tensors) -> Tensors:
        """Permute a mask or a state dict.

        Args:
            tensors: A mask, or a mapping from name to tensor; it may hold a part of the spec's tensors. Tensors without
                dimensions need no entry in the spec.

        Returns:
            A mask for a mask, else a new dict; tensors that do not move are passed on as they are.

        Raises:
            SpecMismatchError: A name or shape is not the spec's; nothing was changed.
        """
        self.spec.check_fits(tensors)
        moved: dict[Any, Tensor] = {}  # tied tensors stay tied
        result = {}
        for name, tensor in tensors.items():
            key = (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), self.spec.tensors.get(name))
            if key not in moved:
                moved[key] = self._move(name, tensor) if tensor.ndim else tensor
            result[name] = moved[key]
        return type(tensors)(result) if isinstance(tensors, Mask) else result  # pyright: ignore[reportReturnType]

    def inverse(self) -> Permutation:
        """The permutation that undoes this one."""
        entries = {}
        for name in self.entries:
            grid, source = self._sources(name)
            entries[name] = np.empty(_entry_shape(self.spec, name), dtype=np.int64)
            entries[name][source] = grid[-1]
        return Permutation(self.spec, entries)

    def __matmul__(self, other: Permutation) -> Permutation:
        """``p @ q`` applies q first, then p: ``(p @ q)(x) == p(q(x))``."""
        if not isinstance(other, Permutation):
            return NotImplemented
        if self.spec is not other.spec and self.spec.fingerprint != other.spec.fingerprint:
            raise SpecMismatchError(
                "two permutations must be of the same spec to be composed; "
                f"received fingerprints {self.spec.fingerprint[:8]} and {other.spec.fingerprint[:8]}."
            )
        entries = {}
        for name in self.entries.keys() | other.entries.keys():
            _, source = self._sources(name)
            entries[name] = np.broadcast_to(other.entry(name)[source], _entry_shape(self.spec, name))
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
        moved = sum(int((entry != np.arange(entry.shape[-1])).sum()) for entry in self.entries.values())
        return f"Permutation({len(self.entries)} of {len(self.spec.free)} free groups move, {moved:,} indices)"

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the entries, their description and the spec into ``folder``, in one step."""
        write_permutation(folder, self.entries, self.spec.fingerprint, self.spec.save)

    @classmethod
    def from_pretrained(cls, source: str | Path, spec: PermutationSpec, **where: Unpack[Where]) -> Permutation:
        """Load a permutation.

        Args:
            source: A folder written by :meth:`save_pretrained`, or the id of a repository on the Hub. Beside it lies
                its spec, ``permutation_spec.json``, which ``PermutationSpec.load`` reads.
            spec: The spec of the model at hand.
            where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            FileNotFoundError: A file is missing.
            SpecMismatchError: The permutation is for another spec.
            SymmetryError: A file is malformed, damaged, or newer than this library.
        """
        fingerprint, entries = read_permutation(cls._folder(source, **where))
        if fingerprint != spec.fingerprint:
            raise SpecMismatchError(
                f"the permutation in {source} must be of the given spec, {spec.fingerprint[:8]}; "
                f"received one of spec {fingerprint[:8]}. Load {SPEC_NAME} beside it to compare."
            )
        return cls(spec, entries)

    def _move(self, name: str, tensor: Tensor) -> Tensor:
        """The permuted tensor, or the very same one if none of its groups moves."""
        blocks = self.spec.tensors[name]
        if not any(leaf in self.entries for block in blocks for axis in block.axes for leaf in axis.leaves):
            return tensor
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

    def _block_sources(self, block: Block) -> list[np.ndarray]:
        """Per axis, where its new elements come from: positions of one dimension per axis, of size 1 if it is alike."""
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

    def _sources(self, group: str) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """The open grid over a group's parents and itself, and where each of them comes from."""
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
    """Permute the parameters and buffers of ``model`` in place, bit for bit; the function stays the same.

    A tied tensor is moved once. Tensors of frozen groups are not touched. Gradients and optimizer state do not move.

    Args:
        model: A model of the permutation's spec, on any device and in any precision.
        permutation: What to apply.

    Raises:
        SpecMismatchError: The model is another one, or ties tensors that the permutation moves apart; nothing was
            changed.
    """
    spec, inner = permutation.spec, unwrap(model)
    spec.check_fits(inner)
    names: dict[int, str] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in (*inner.named_parameters(remove_duplicate=False), *inner.named_buffers(remove_duplicate=False)):
        name, first = plain_name(name), names.setdefault(id(tensor), plain_name(name))
        if tensor.ndim and spec.tensors[name] != spec.tensors[first]:
            raise SpecMismatchError(
                f"tied tensors must move together; received {first!r} and {name!r}, one tensor in this model but of "
                "different groups in the spec. Discover the spec on a model that ties them."
            )
        tensors[id(tensor)] = tensor
    for key, tensor in tensors.items():
        held = tensor.detach()
        if held.ndim and (moved := permutation._move(names[key], held)) is not held:
            held.copy_(moved)
    _forget_caches(inner)


def _forget_caches(model: nn.Module) -> None:
    """Some modules keep what they computed from their weights until ``train()`` is called."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, mode in modes:
        module.training = mode


def _axis_maps(shape: tuple[int, ...], blocks: tuple[Block, ...], sources: list) -> list[np.ndarray] | None:
    """One source index per position of every axis, if the blocks agree and no axis depends on another; else None."""
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


def _entry_shape(spec: PermutationSpec, group: str) -> tuple[int, ...]:
    return tuple(spec.groups[name].size for name in (*spec.groups[group].parents, group))


def _moves(entry: np.ndarray) -> bool:
    return bool((entry != np.arange(entry.shape[-1])).any())


def _checked(spec: PermutationSpec, name: str, entry: Any) -> np.ndarray:
    """An own, read-only int64 copy of an entry."""
    if name not in spec.groups:
        raise SymmetryError(f"a permutation's entry must name a group of the spec; received {name!r}. Print the spec.")
    array, shape = np.asarray(entry), _entry_shape(spec, name)
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
