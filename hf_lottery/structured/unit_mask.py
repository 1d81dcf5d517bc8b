"""UnitMask: a mask that removes whole units, such as channels, heads or the units of a feed-forward layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..masks.config import CONFIG_NAME
from ..masks.file import read_mask
from ..masks.mask import Mask, MaskMismatchError
from ..storage.encoding import MaskFileError, count_ones
from ..symmetry.errors import SpecMismatchError
from ..symmetry.groups import Block
from ..symmetry.permutation import Permutation
from ..symmetry.structure import Structure
from .unit_file import KEY, read_units, units_to_json

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..storage.hub_mixin import Where


class UnitMask(Mask):
    """A mask that removes whole units: with a unit go all weights that it receives through and sends through.

    It is a mask of weights in every way. A weight stays if all units that it belongs to stay. Operators such as ``&``
    give plain masks, and so does ``Mask.from_pretrained``.

    Args:
        units: Group name -> bool tensor of the sizes of the group's parents, then its own; True keeps. Groups that are
            not named keep all of their units. In every row, so for every index of the parents, as many units stay.
        spec: The symmetries that the groups are of.
        names: The parameters that the mask covers. By default all tensors of the spec with two or more axes that one of
            the named groups lies on; pass the names if buffers are among them, or tensors with several names.

    Attributes:
        units: As given, in the order of the spec's groups.
        spec_fingerprint: The fingerprint of the spec.

    Raises:
        MaskMismatchError: A group or name is not in the spec, a group is frozen, or units have another shape.
        TypeError: The units of a group are not a bool tensor.
        ValueError: Rows of a group keep different numbers of units, or none.

    Example:
        >>> import numpy as np
        >>> from hf_lottery.symmetry import Axis, Block, Group, PermutationSpec
        >>> groups = [Group("in", 4, frozen="input"), Group("hidden", 3), Group("out", 2, frozen="output")]
        >>> axis = {group.name: Axis((group.name,), np.arange(group.size)) for group in groups}
        >>> spec = PermutationSpec(groups, {"fc1.weight": [Block((axis["hidden"], axis["in"]))],
        ...                                 "fc2.weight": [Block((axis["out"], axis["hidden"]))]})
        >>> mask = UnitMask({"hidden": torch.tensor([True, False, True])}, spec)
        >>> mask
        UnitMask(2 of 3 units kept in 1 groups, 12 of 18 weights kept, sparsity 0.3333)
        >>> mask["fc2.weight"]
        tensor([[ True, False,  True],
                [ True, False,  True]])
    """

    def __init__(self, units: Mapping[str, Tensor], spec: Structure, *, names: Iterable[str] | None = None):
        self.units = _checked(units, spec)
        self.spec_fingerprint = spec.fingerprint
        super().__init__(_entries(self.units, spec, names), copy=False)

    @classmethod
    def _of(cls, entries: Mapping[str, Tensor], units: Mapping[str, Tensor], fingerprint: str) -> UnitMask:
        made = cls.__new__(cls)
        Mask.__init__(made, entries, copy=False)
        made.units, made.spec_fingerprint = dict(units), fingerprint
        return made

    @classmethod
    def from_file(cls, entries: Mapping[str, Tensor], config: Mapping[str, Any], *, path: Path) -> Mask:
        """Make the mask that a mask file holds: a unit mask if there are units in its config, else a plain one.

        Args:
            entries: The entries that were read from the file.
            config: The file's config.
            path: Where the config is, for the error messages.

        Raises:
            MaskFileError: The units are malformed.
        """
        if KEY not in config:
            return Mask(entries, copy=False)
        return cls._of(entries, *read_units(config[KEY], path))

    @classmethod
    def from_pretrained(cls, source: str | Path, *, level: int | None = None, **where: Unpack[Where]) -> UnitMask:
        """Load a unit mask, or that of a ticket or signed mask.

        Args:
            source: A folder written by ``save_pretrained``, or the id of a repository on the Hub.
            level: Must be None: of a series, only the last level has its units.
            where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            FileNotFoundError: A file is missing.
            MaskFileError: A file is malformed, damaged, of a newer format, or holds a mask without units.
            ValueError: A level is given.
        """
        if level is not None:
            raise ValueError(
                f"level must be None, as only the last one has units; received {level}. Use Mask.from_pretrained, and "
                "shrink with that mask."
            )
        mask = cls.load_any(source, **where)
        if not isinstance(mask, UnitMask):
            raise MaskFileError(
                f"{source} must hold units; received a mask without. Load it with Mask.from_pretrained."
            )
        return mask

    @classmethod
    def load_any(cls, source: str | Path, **where: Unpack[Where]) -> Mask:
        """Load a mask as what it is: with its units if it has any, else as a plain one.

        Args:
            source: As for :meth:`from_pretrained`.
            where: As for :meth:`from_pretrained`.

        Raises:
            FileNotFoundError: A file is missing.
            MaskFileError: A file is malformed, damaged or of a newer format.
        """
        return cls.from_folder(cls._folder(source, **where))

    @classmethod
    def from_folder(cls, folder: Path) -> Mask:
        """Read the mask in a folder as :meth:`load_any` does, but never look for it on the Hub.

        Args:
            folder: The folder.

        Raises:
            FileNotFoundError: A file is missing.
            MaskFileError: A file is malformed, damaged or of a newer format.
        """
        return cls.from_file(*read_mask(folder), path=folder / CONFIG_NAME)

    def config_keys(self) -> dict[str, Any]:
        """Return the units for the config of the mask's file."""
        return {KEY: units_to_json(self.units, self.spec_fingerprint)}

    def permuted(self, entries: Mapping[str, Tensor], permutation: Permutation) -> UnitMask:
        """Make the mask whose entries a permutation has moved, and move the units as well.

        Args:
            entries: The permuted entries.
            permutation: The permutation.

        Raises:
            SpecMismatchError: The permutation is of another spec.
        """
        self.check_spec(permutation.spec)
        units = {}
        for group, kept in self.units.items():
            _, source = permutation.sources(group)
            units[group] = torch.from_numpy(np.broadcast_to(kept.numpy()[source], kept.shape).copy())
        return UnitMask._of(entries, units, self.spec_fingerprint)

    def check_spec(self, spec: Structure) -> None:
        """Check that the units are of the groups of a spec.

        Raises:
            SpecMismatchError: They are of another spec.
        """
        if self.spec_fingerprint != spec.fingerprint:
            raise SpecMismatchError(
                f"a unit mask must be of the given spec, {spec.fingerprint[:8]}; received one of spec "
                f"{self.spec_fingerprint[:8]}. Discover the spec on the model that the mask is for."
            )

    @property
    def unit_count(self) -> int:
        """Number of units of all named groups, kept or not."""
        return sum(units.numel() for units in self.units.values())

    @property
    def kept_units(self) -> int:
        """Number of units that stay."""
        return sum(map(count_ones, self.units.values()))

    @property
    def unit_sparsity(self) -> float:
        """Fraction of the units of all named groups that is removed, in [0, 1]."""
        return (self.unit_count - self.kept_units) / self.unit_count

    def __repr__(self) -> str:
        return (
            f"UnitMask({self.kept_units:,} of {self.unit_count:,} units kept in {len(self.units)} groups, "
            f"{self.kept:,} of {self.weights:,} weights kept, sparsity {self.sparsity:.4f})"
        )


def covered_by(spec: Structure, groups: Iterable[str], *, names: Iterable[str]) -> list[str]:
    """Return those of some tensors of a spec, in their order, that have two or more axes and lie on one of the groups.

    Args:
        spec: The symmetries.
        groups: Names of groups.
        names: Names of tensors.
    """
    lies = {tensor for group in groups for tensor, _ in spec.members[group]}
    return [name for name in names if name in lies and len(spec.shapes[name]) >= 2]


def _checked(units: Mapping[str, Tensor], spec: Structure) -> dict[str, Tensor]:
    """Own copies of the units, in the order of the groups, once they are known to be right."""
    for group, kept in units.items():
        if group not in spec.groups:
            raise MaskMismatchError(
                f"units must name groups of the spec; received {group!r}. list(spec.groups) shows all names."
            )
        if (why := spec.groups[group].frozen) is not None:
            raise MaskMismatchError(f"the units of {group!r} must stay, as it is frozen: {why}. Leave the group out.")
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
            received = kept.dtype if isinstance(kept, Tensor) else type(kept).__name__
            raise TypeError(f"the units of {group!r} must be a bool tensor, True keeps; received {received}.")
        if tuple(kept.shape) != (shape := spec.entry_shape(group)):
            raise MaskMismatchError(
                f"the units of {group!r} must have the shape {list(shape)}, the sizes of its parents and its own; "
                f"received {list(kept.shape)}."
            )
        counts = kept.reshape(-1, shape[-1]).sum(dim=1)
        if not counts.all():
            raise ValueError(f"at least one unit of {group!r} must stay; received units that are all cut.")
        if (counts != counts[0]).any():
            raise ValueError(
                f"as many units of {group!r} must stay for every index of {', '.join(spec.groups[group].parents)}, or "
                f"its tensors have no shape; received {sorted(set(counts.tolist()))}. prune_units chooses so."
            )
    return {group: units[group].cpu().clone() for group in spec.groups if group in units}


def _entries(units: Mapping[str, Tensor], spec: Structure, names: Iterable[str] | None) -> dict[str, Tensor]:
    chosen = covered_by(spec, units, names=spec.tensors) if names is None else list(names)
    if unknown := [name for name in chosen if name not in spec.tensors]:
        raise MaskMismatchError(f"names must be of tensors of the spec; received {unknown[0]!r}.")
    if not chosen:
        raise MaskMismatchError(
            f"a unit mask must cover a tensor with two or more axes; received {len(units)} groups, which lie on none."
        )
    kept, entries = {group: mask.numpy() for group, mask in units.items()}, {}
    for name in chosen:
        entry = np.ones(spec.shapes[name], dtype=np.bool_)
        for block in spec.tensors[name]:
            if any(leaf in kept for axis in block.axes for leaf in axis.leaves):
                entry[np.ix_(*(axis.positions.reshape(-1) for axis in block.axes))] = _of_block(block, kept, spec)
        entries[name] = torch.from_numpy(entry)
    return entries


def _of_block(block: Block, kept: Mapping[str, np.ndarray], spec: Structure) -> np.ndarray:
    """Which elements of a block stay: those all of whose units stay."""
    slots = block.slots(spec.groups)
    sizes = tuple(spec.groups[slot.group].size for slot in slots)
    grid = np.ix_(*map(np.arange, sizes))
    stays = np.ones((1,) * len(sizes), dtype=np.bool_)
    for slot, here in zip(slots, grid, strict=True):
        if slot.group in kept:
            stays = stays & kept[slot.group][(*(grid[parent] for parent in slot.parents), here)]
    shape = tuple(math.prod(axis.positions.shape) for axis in block.axes)
    return np.broadcast_to(stays, sizes).reshape(shape)
