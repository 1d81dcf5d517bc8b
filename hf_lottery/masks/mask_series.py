"""MaskSeries: the nested masks of iterative pruning, with one bit for each weight that the level before keeps."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor

from ..networks.display import SHOWN_ROWS, escaped, html_table
from ..storage.atomic import staged_folder
from ..storage.encoding import NestedBits, nest
from ..storage.hub_mixin import HubMixin
from .file import CONFIG_NAME, MASK_NAME, read_series, stage_series
from .mask import Mask, MaskMismatchError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..storage.hub_mixin import Where


class MaskSeries(Sequence[Mask], HubMixin):
    """A sequence of nested masks, such as the levels of iterative pruning.

    Each mask keeps only weights that the one before it keeps. The series is immutable. It holds one bit for each weight
    that the level before keeps, which is 5 bits a weight for any number of levels of 20 % each, and makes a mask when
    it is asked for one.

    Args:
        masks: The masks in order, the densest first. The first may keep everything. An iterator is read one mask at a
            time, and only two are in memory at once.

    Raises:
        TypeError: An entry is not a mask.
        MaskMismatchError: The masks do not cover the same names and shapes.
        ValueError: There are no masks, or one keeps a weight that the one before prunes.

    Example:
        >>> levels = [[True, True, True, True], [True, False, True, True], [True, False, False, True]]
        >>> series = MaskSeries(Mask({"w": torch.tensor(level)}) for level in levels)
        >>> series
        MaskSeries(3 levels of 1 parameters, 4 weights, sparsity 0.0000 to 0.5000)
        >>> series[-1]["w"].tolist()
        [True, False, False, True]
        >>> series.sparsities
        (0.0, 0.25, 0.5)
    """

    FILES = (CONFIG_NAME, MASK_NAME)
    __hash__ = None  # pyright: ignore[reportAssignmentType]  # equality is by value, as that of masks

    def __init__(self, masks: Iterable[Mask]):
        self._bits: dict[str, NestedBits] = {}
        self._levels, before = 0, None
        for mask in masks:
            if not isinstance(mask, Mask):
                raise TypeError(f"level {self._levels} of a series must be a Mask; received {type(mask).__name__}.")
            if before is None:
                self._bits = {name: nest(entry) for name, entry in mask.items()}
            else:
                _check_pair(self._levels, before, mask)
                self._bits = {name: nest(mask[name], before[name], bits) for name, bits in self._bits.items()}
            before, self._levels = mask, self._levels + 1
        if before is None:
            raise ValueError("a series must have at least one mask; received none.")

    @classmethod
    def from_pretrained(cls, source: str | Path, **where: Unpack[Where]) -> MaskSeries:
        """Load a series; for one level see ``Mask.from_pretrained``.

        Args:
            source: A folder written by :meth:`save_pretrained`, or the id of a repository on the Hub.
            where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            FileNotFoundError: A file is missing.
            MaskFileError: A file is malformed, damaged, of a newer format, or holds no series.
        """
        return cls._of(read_series(cls._folder(source, **where)))

    @classmethod
    def _of(cls, bits: dict[str, NestedBits]) -> MaskSeries:
        series = cls.__new__(cls)
        series._bits, series._levels = bits, len(next(iter(bits.values())).kept)
        return series

    def save_pretrained(self, folder: str | Path) -> None:
        """Write all levels into ``folder`` as one ``mask_config.json`` and one ``mask.safetensors``."""
        with staged_folder(folder, last=CONFIG_NAME) as stage:
            self.stage(stage)

    def stage(self, stage: Path, *, extra: Mapping[str, Any] | None = None) -> None:
        """Write the files into ``stage``, an existing folder, with the keys of ``extra`` added to the config."""
        stage_series(stage, self._bits, extra=extra)

    def until(self, level: int) -> MaskSeries:
        """Return the series of the levels from 0 to ``level``, which shares memory with this one."""
        last = self._checked(level)
        return self._of({name: bits.until(last) for name, bits in self._bits.items()})

    def __len__(self) -> int:
        return self._levels

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Mask, ...]: ...
    def __getitem__(self, index: int | slice) -> Mask | tuple[Mask, ...]:
        """Return the mask of a level, where -1 is the last; a slice gives a tuple of masks."""
        if isinstance(index, slice):
            return tuple(self[level] for level in range(self._levels)[index])
        level = self._checked(index)
        return Mask({name: bits.level(level) for name, bits in self._bits.items()})

    def _checked(self, level: int) -> int:
        """Return the number of a level from 0, where -1 is the last."""
        if not -self._levels <= operator.index(level) < self._levels:
            raise IndexError(f"a level must be from 0 to {self._levels - 1}; received {level}.")
        return operator.index(level) % self._levels

    @property
    def sparsities(self) -> tuple[float, ...]:
        """The sparsity of each level, in [0, 1]."""
        weights = sum(bits.candidates(0) for bits in self._bits.values())
        kept = (sum(bits.kept[level] for bits in self._bits.values()) for level in range(self._levels))
        return tuple((weights - count) / weights for count in kept)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MaskSeries):
            return NotImplemented
        if self._bits.keys() != other._bits.keys():
            return False
        return all(_same(bits, other._bits[name]) for name, bits in self._bits.items())

    def __repr__(self) -> str:
        weights = sum(bits.candidates(0) for bits in self._bits.values())
        first, last = self.sparsities[0], self.sparsities[-1]
        return (
            f"MaskSeries({self._levels} levels of {len(self._bits)} parameters, {weights:,} weights, "
            f"sparsity {first:.4f} to {last:.4f})"
        )

    def _repr_html_(self) -> str:
        kept = [sum(bits.kept[level] for bits in self._bits.values()) for level in range(self._levels)]
        rows = [
            (level, f"{count:,}", f"{sparsity:.2%}")
            for level, (count, sparsity) in enumerate(zip(kept, self.sparsities, strict=True))
        ]
        table = html_table(("level", "kept", "sparsity"), rows, limit=SHOWN_ROWS)
        return f"<p>{escaped(self)}</p>\n{table}"


def _check_pair(level: int, before: Mask, mask: Mask) -> None:
    """Raise unless a level may follow the one before."""
    if only := before.keys() ^ mask.keys():
        raise MaskMismatchError(
            f"the levels of a series must cover the same parameters; received {min(only)!r} in one only "
            f"of levels {level - 1} and {level}."
        )
    for name, entry in mask.items():
        if entry.shape != before[name].shape:
            raise MaskMismatchError(
                f"the levels of a series must have one shape for {name!r}; received {list(before[name].shape)} "
                f"and {list(entry.shape)} at levels {level - 1} and {level}."
            )
        if count := int(torch.count_nonzero(entry & ~before[name])):
            raise ValueError(
                f"a level must keep only what the one before keeps; received {count} other weights of {name!r} "
                f"at level {level}. Give the masks of one run, densest first."
            )


def _same(one: NestedBits, other: NestedBits) -> bool:
    if (one.shape, one.kept) != (other.shape, other.kept):
        return False
    # The counts are equal, so that either both are None or neither is.
    pairs = zip(one.packed, other.packed, strict=True)
    return all(mine is theirs or torch.equal(cast(Tensor, mine), cast(Tensor, theirs)) for mine, theirs in pairs)
