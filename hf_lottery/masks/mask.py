"""Mask: which weights stay, as a checked mapping from parameter name to bool tensor; True keeps."""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.computed import REMEDY, computed_in, computed_weights, nonzeros, sources_of_computed
from ..networks.display import SHOWN_ROWS, escaped, first_names, html_table
from ..networks.names import named_parameters, named_weights, replaced_weights
from ..networks.numbers import check_numbers, check_plain
from ..networks.shards import is_sharded, local, part_of, whole
from ..storage.encoding import count_ones
from ..storage.hub_mixin import HubMixin, hub_module
from .file import CONFIG_NAME, MASK_NAME, pack_bits, read_mask, write_mask

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..storage.hub_mixin import Where


class MaskMismatchError(ValueError):
    """A mask does not fit the model, scores or mask that it is used with."""


class Overlap(NamedTuple):
    """Agreement of two masks: intersection over union of the kept weights, and what chance would give."""

    iou: float
    chance: float

    def __repr__(self) -> str:
        return f"Overlap(iou {self.iou:.4f}, by chance {self.chance:.4f})"


def overlap_of(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Overlap:
    """Measure the overlap of two masks from pairs of their parts.

    Args:
        pairs: Bool arrays of one shape: a part of the first mask, such as a parameter or a head, and the same part of
            the second.

    Returns:
        ``iou``, intersection over union of the kept weights in [0, 1] (1.0 when both keep nothing), and ``chance``,
        the same ratio of expectations if each part were shuffled independently.
    """
    both = union = chance_both = chance_union = 0.0
    for mine, theirs in pairs:
        kept, kept_other = int(np.count_nonzero(mine)), int(np.count_nonzero(theirs))
        shared, expected = int(np.count_nonzero(mine & theirs)), kept * kept_other / max(mine.size, 1)
        both, union = both + shared, union + kept + kept_other - shared
        chance_both, chance_union = chance_both + expected, chance_union + kept + kept_other - expected
    return Overlap(both / union if union else 1.0, chance_both / chance_union if chance_union else 1.0)


class Mask(Mapping[str, Tensor], HubMixin):
    """Which weights stay: parameter name -> bool tensor of the parameter's shape, True keeps.

    A mask is a mapping in the order of its entries. It lives on the CPU and owns its tensors. Treat it as immutable:
    its operators return new masks.

    Args:
        entries: Parameter name -> bool tensor. Sharded tensors are gathered, so every process must make the mask.
        copy: Whether to copy the tensors. If not, the mask takes over those that are contiguous and on the CPU: nothing
            may write to them afterwards.

    Raises:
        ValueError: No entries, no weights in them, or entries on the meta device.
        TypeError: An entry is not a bool tensor.

    Example:
        >>> mask = Mask({"fc.weight": torch.tensor([[True, False], [False, False]])})
        >>> mask.sparsity
        0.75
        >>> (~mask).sparsity
        0.25
    """

    FILES = (CONFIG_NAME, MASK_NAME)
    __hash__ = None  # pyright: ignore[reportAssignmentType]  # equality is by value and tensors are mutable

    def __init__(self, entries: Mapping[str, Tensor], *, copy: bool = True):
        for name, entry in entries.items():
            if not isinstance(entry, Tensor) or entry.dtype != torch.bool:
                received = entry.dtype if isinstance(entry, Tensor) else type(entry).__name__
                raise TypeError(f"the mask of {name!r} must be a bool tensor; received {received}. Try `weight != 0`.")
        check_numbers(entries)
        if not any(entry.numel() for entry in entries.values()):
            raise ValueError(f"a mask must cover at least one weight; received {len(entries)} entries without any.")
        self._entries = {
            name: entry
            if not copy and entry.is_cpu and entry.is_contiguous() and not is_sharded(entry)
            else whole(entry).to("cpu", copy=copy, memory_format=torch.contiguous_format).contiguous()
            for name, entry in entries.items()
        }

    @classmethod
    def dense(cls, model: nn.Module | Mapping[str, Tensor]) -> Mask:
        """Make the mask that keeps everything.

        Args:
            model: The weights to cover, by name, such as ``prunable(model)``. Of a module, all parameters with two or
                more dimensions are covered; a tied one is covered once. Left out are adapters of PEFT, and parameters
                that a weight is computed from, as in a weight norm; a warning names these weights.
        """
        return Mask({name: torch.ones(w.shape, dtype=torch.bool) for name, w in matrices_of(model).items()})

    @classmethod
    def from_model(cls, model: nn.Module | Mapping[str, Tensor]) -> Mask:
        """Adopt the zeros of a model that is sparse already: a weight that is exactly 0 counts as pruned.

        Args:
            model: As for :meth:`dense`. Pass ``prunable(model)`` to leave out embeddings, whose padding row is zero.

        Raises:
            ValueError: A weight has no numbers, as on the meta device, is quantised or in a sparse layout, or is
                computed from other parameters and has zeros, as under ``torch.nn.utils.prune``.

        Warns:
            UserWarning: A parameter has no weight that is not zero.
        """
        _refuse_computed_zeros(model)
        weights = matrices_of(model)
        check_numbers(weights)
        check_plain(weights)
        mask = Mask({name: whole(w.detach() != 0) for name, w in weights.items()})
        if empty := [name for name, sparsity in mask.layer_sparsities().items() if sparsity == 1]:
            warnings.warn(
                f"no weight is left in {', '.join(map(repr, empty))}: every one of them is zero, and the mask holds it "
                "there. If these are layers that start at zero, leave them out: prunable(model, exclude=...).",
                stacklevel=2,
            )
        return mask

    @classmethod
    def from_pretrained(cls, source: str | Path, *, level: int | None = None, **where: Unpack[Where]) -> Mask:
        """Load a mask, the mask of a ticket, or one of a series.

        Args:
            source: A folder written by ``save_pretrained``, or the id of a repository on the Hub.
            level: The level to load from a :class:`hf_lottery.MaskSeries`, counted from 0; by default the last.
            where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            FileNotFoundError: A file is missing.
            MaskFileError: A file is malformed, damaged, or of a newer format.
            ValueError: There is no such level.
        """
        return cls(read_mask(cls._folder(source, **where), level=level)[0])

    @classmethod
    def from_checkpoint(cls, source: str | Path, **options: Any) -> Mask:
        """Adopt the zeros of a sparse model that others saved, in a folder or a repository on the Hub.

        Args:
            source: A folder or repository; :func:`hf_lottery.hf.hub.checkpoint.mask_from_checkpoint` says what is read.
            options: The options of that function: ``include``, ``exclude``, ``model``, and those of
                ``from_pretrained``.
        """
        return hub_module().mask_from_checkpoint(source, **options)

    def save_pretrained(self, folder: str | Path, *, info: Mapping[str, Any] | None = None) -> None:
        """Write ``mask_config.json`` and ``mask.safetensors`` (at most one bit per weight) into ``folder``.

        Args:
            folder: The folder; it is created if it does not exist.
            info: Where the mask comes from, in JSON terms, such as ``parents``; it is kept in the config.
        """
        write_mask(folder, self._entries, extra={**self.config_keys(), **({"info": dict(info)} if info else {})})

    def config_keys(self) -> dict[str, Any]:
        """Return the further keys that this kind of mask needs in the config of its file; a plain mask needs none."""
        return {}

    def permuted(self, entries: Mapping[str, Tensor], permutation: Any) -> Mask:
        """Make the mask whose entries a permutation has moved; a kind of mask that holds more moves that as well.

        Args:
            entries: The permuted entries.
            permutation: The :class:`~hf_lottery.symmetry.Permutation`.
        """
        return Mask(entries)

    def sha256(self) -> str:
        """Return a hash of names, shapes and entries; equal masks have the same one, in whatever order they are."""
        digest = hashlib.sha256()
        for name in sorted(self._entries):
            entry = self._entries[name]
            digest.update(f"{name}|{list(entry.shape)}|".encode())
            digest.update(pack_bits(entry).numpy().tobytes())
        return digest.hexdigest()

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def weights(self) -> int:
        """Number of weights covered, kept or not."""
        return sum(entry.numel() for entry in self._entries.values())

    @property
    def kept(self) -> int:
        """Number of weights that stay."""
        return sum(map(count_ones, self._entries.values()))

    @property
    def density(self) -> float:
        """Fraction of the covered weights that stays, in [0, 1]."""
        return self.kept / self.weights

    @property
    def sparsity(self) -> float:
        """Fraction of the covered weights that is removed, in [0, 1]."""
        return (self.weights - self.kept) / self.weights

    def layer_sparsities(self) -> dict[str, float]:
        """Return the fraction that is removed from each parameter, by name (0.0 for a parameter without elements)."""
        return {
            name: 1 - count_ones(entry) / entry.numel() if entry.numel() else 0.0
            for name, entry in self._entries.items()
        }

    def __and__(self, other: Mask) -> Mask:
        """The weights that both masks keep."""
        return self._combine(other, torch.logical_and)

    def __or__(self, other: Mask) -> Mask:
        """The weights that at least one mask keeps."""
        return self._combine(other, torch.logical_or)

    def __invert__(self) -> Mask:
        """The weights that this mask removes."""
        return Mask({name: ~entry for name, entry in self._entries.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(entry, other[name]) for name, entry in self.items())

    def __repr__(self) -> str:
        kept = f"{self.kept:,} of {self.weights:,} weights kept"
        return f"Mask({len(self)} parameters, {kept}, sparsity {self.sparsity:.4f})"

    def _repr_html_(self) -> str:
        rows = (
            (name, list(entry.shape), f"{count_ones(entry):,}", f"{sparsity:.2%}")
            for (name, entry), sparsity in zip(self.items(), self.layer_sparsities().values(), strict=True)
        )
        table = html_table(("parameter", "shape", "kept", "sparsity"), rows, limit=SHOWN_ROWS)
        return f"<p>{escaped(self)}</p>\n{table}"

    def overlap(self, other: Mask) -> Overlap:
        """Measure how far two masks keep the same weights.

        Returns:
            ``iou``, intersection over union of the kept weights in [0, 1] (1.0 when both keep nothing), and
            ``chance``, the same ratio of expectations if each parameter's mask were shuffled independently.

        Raises:
            MaskMismatchError: The masks differ in names or shapes.
        """
        self.check_same_structure(other)
        return overlap_of((mine.numpy(), other[name].numpy()) for name, mine in self.items())

    def shuffled(self, seed: int) -> Mask:
        """Shuffle the entries within each parameter: the control that keeps the sparsities alone."""
        generator = torch.Generator().manual_seed(seed)
        return Mask(
            {
                name: entry.flatten()[torch.randperm(entry.numel(), generator=generator)].view(entry.shape)
                for name, entry in self.items()
            }
        )

    def check_fits(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Check that every entry names a parameter of ``model`` and has its shape.

        Raises:
            MaskMismatchError: An entry does not fit. The message names the parameter and both shapes, or the nearest
                names that exist.
            ValueError: A parameter has no numbers, as on the meta device.
        """
        weights = named_weights(model)
        replaced = replaced_weights(model) if isinstance(model, nn.Module) else ()
        for name, entry in self.items():
            if name not in weights:
                hint = _missing_name(name, model, weights)
                raise MaskMismatchError(f"mask entry {name!r} must name a parameter; received no such name. {hint}")
            if name in replaced:
                raise MaskMismatchError(
                    f"mask entry {name!r} must name a parameter that the model computes with; received one of a module "
                    "that PEFT trains a copy of (modules_to_save). Leave it out of the mask, or take the module out of "
                    "modules_to_save."
                )
            if weights[name].shape != entry.shape:
                raise MaskMismatchError(
                    f"the mask of {name!r} must have the parameter's shape {list(weights[name].shape)}; "
                    f"received {list(entry.shape)}. It is a mask for another model or size."
                )

    def check_same_structure(self, other: Mask) -> None:
        """Check that another mask covers the same parameters with the same shapes.

        Raises:
            MaskMismatchError: The masks differ in names or shapes.
        """
        if only := self.keys() ^ other.keys():
            raise MaskMismatchError(f"two masks must cover the same parameters; received {min(only)!r} in one only.")
        self.check_fits(other)

    @torch.no_grad()
    def apply_(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Set the pruned weights of ``model`` to exactly zero, in place.

        Raises:
            MaskMismatchError: The mask is for another model; nothing was changed.
            ValueError: A parameter has no numbers, as on the meta device, or is quantised or in a sparse layout;
                nothing was changed.
        """
        self.check_fits(model)
        weights = named_weights(model)
        check_plain({name: weights[name] for name in self})
        for name, entry in self.items():
            weight = local(weights[name])
            weight.masked_fill_(~part_of(entry, weights[name]).to(weight.device), 0)

    def _combine(self, other: Mask, operation) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        self.check_same_structure(other)
        return Mask({name: operation(entry, other[name]) for name, entry in self.items()})


def matrices_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a mask of a model covers unless it is told otherwise, by name; see :meth:`Mask.dense`.

    Args:
        model: A module, or the weights to cover by name.

    Warns:
        UserWarning: A weight is computed from other parameters, and left out.
    """
    if not isinstance(model, nn.Module):
        return dict(model)
    if computed := computed_weights(model):
        warnings.warn(
            f"a mask covers no weight that is computed from other parameters; left out: {first_names([*computed])}. "
            f"{REMEDY}.",
            stacklevel=3,
        )
    sources, replaced = sources_of_computed(model), replaced_weights(model)
    named = named_parameters(model, numbers=False)
    return {n: p for n, p in named.items() if p.ndim >= 2 and id(p) not in sources and n not in replaced}


def _refuse_computed_zeros(model: nn.Module | Mapping[str, Tensor]) -> None:
    """Refuse a model whose zeros are not those of its parameters."""
    if isinstance(model, nn.Module):
        computed, sources = computed_weights(model), []
    else:
        computed, sources = getattr(model, "computed", {}), computed_in(model)  # a Prunable knows what it leaves out
    for name, module in computed.items():
        check_numbers(module)
        used = nonzeros(module, name.rpartition(".")[2])
        if used.ndim >= 2 and not used.all():
            sources.append(name)
    if sources:
        raise ValueError(
            f"zeros must be adopted from plain parameters; received {first_names(sources)}, of weights that "
            f"torch.nn.utils.prune or a parametrization computes. {REMEDY}; or leave them out: "
            "prunable(model, exclude=...)."
        )


def _missing_name(name: str, model: nn.Module | Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """What to do about an entry that names no parameter."""
    if isinstance(model, nn.Module) and name in computed_weights(model):
        return f"This weight is computed from other parameters. {REMEDY}."
    near = difflib.get_close_matches(name, weights, n=3)
    return f"Near names: {', '.join(near)}." if near else "It is a mask for another model."
