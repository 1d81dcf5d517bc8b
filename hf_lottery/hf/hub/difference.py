"""Difference: the weights of a fine-tuning, stored as what it changed in its base model, and applied to that base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...masks.config import CONFIG_NAME
from ...masks.mask import Mask, MaskMismatchError
from ...networks.names import adapter_weights, base_of, named_state, named_weights
from ...networks.shards import local, part_of, whole
from ...storage.checksums import check_sha256, sha256_of
from ...storage.encoding import ENCODINGS, MaskFileError, encode, pack_bits, read_bits
from ...training.snapshot import Snapshot
from .reference import Reference, RewindMismatchError

DIFFERENCE_NAME = "difference.safetensors"
_VALUES, _PLACES = ".values", ".places"
_KEPT = "kept"  # the encoding of places that need no bits: all that the mask keeps


class Change(NamedTuple):
    """What is new in one tensor.

    Attributes:
        places: Where it is, bool of the tensor's shape; only weights that the mask keeps.
        values: What it is there, in the order of the places, ``[count]``.
    """

    places: Tensor
    values: Tensor


@dataclass(frozen=True, repr=False)
class Difference:
    """The weights of a sparse fine-tuning, as the difference to its base model.

    It is small where few weights changed, or few are left: of every changed tensor, only kept weights are stored. The
    base may be dense or under the mask, because pruned weights do not count. A checksum proves every weight that is
    taken from it. A tensor of which more than half of the kept weights changed is stored whole, so a new task head may
    have other values in the base.

    Attributes:
        step: Optimizer steps of the fine-tuning.
        base_sha256: Hash of the weights and buffers that are taken from the base, with zeros elsewhere.
        mask: Which weights stay.
        changes: Plain name of a parameter or buffer -> what is new in it.
    """

    step: int
    base_sha256: str
    mask: Mask
    changes: Mapping[str, Change]

    @classmethod
    def between(cls, base: nn.Module | Snapshot, model: nn.Module, mask: Mask, *, step: int = 0) -> Difference:
        """Find what a fine-tuning changed.

        Args:
            base: The base model, or its snapshot; with or without the mask.
            model: The fine-tuned model, with adapters merged.
            mask: Which of its weights stay.
            step: Optimizer steps of the fine-tuning.

        Raises:
            MaskMismatchError: The mask or the base is for another model.
            ValueError: The model still has adapters, is not zero where the mask prunes, or is the base itself.

        Example:
            >>> base, mask = nn.Linear(2, 2), Mask({"weight": torch.tensor([[True, False], [True, True]])})
            >>> tuned = nn.Linear(2, 2)
            >>> tuned.load_state_dict(base.state_dict())
            <All keys matched successfully>
            >>> tuned.bias.data += 1
            >>> mask.apply_(tuned)
            >>> difference = Difference.between(base, tuned, mask)
            >>> difference
            Difference(step 0, 1 changed tensors, 2 new values)
        """
        if adapters := adapter_weights(model):
            raise ValueError(
                f"the model must have its adapters merged; received one with {min(adapters)!r}. Call "
                "merge_adapter(model, mask=mask) before."
            )
        if isinstance(base, nn.Module) and base_of(base) is base_of(model):
            raise ValueError(
                "the base must be another model than the fine-tuned one; received one model as both, as training and "
                "get_peft_model work in place. Load the base again, or pass a Snapshot.capture(base) from before."
            )
        before = base.tensors if isinstance(base, Snapshot) else named_state(base)
        after, kept = named_state(model), _kept(model, mask)
        for name in sorted(before.keys() | after.keys()):
            _check_same(name, before, after)
        changes = {name: _change(name, before[name], after[name], kept.get(name)) for name in after}
        found = {name: change for name, change in changes.items() if len(change.values)}
        return cls(step, _sha256_of_base(before, kept, found), mask, found)

    def restore_(self, model: nn.Module) -> None:
        """Turn the base model into the fine-tuned one, in place; pruned weights become zero.

        Raises:
            MaskMismatchError: The mask or the changes are for another model; nothing was changed.
            RewindMismatchError: The model is not at the weights of the base; nothing was changed.
        """
        state, kept = named_state(model), _kept(model, self.mask)
        for name, change in self.changes.items():
            _check_same(name, {name: _blank(change)}, state)
        found = _sha256_of_base(state, kept, self.changes)
        if found != self.base_sha256:
            raise RewindMismatchError(
                "the model must be at the weights of the base that the difference is to, sha256 "
                f"{self.base_sha256[:12]}; received {found[:12]}. Load the base model in the revision and in the "
                "precision that it was fine-tuned from."
            )
        with torch.no_grad():
            for name, change in self.changes.items():
                ours, full = local(state[name]), _blank(change)
                full[change.places] = change.values
                new, places = (part_of(part, state[name]).to(ours.device) for part in (full, change.places))
                ours.copy_(torch.where(places, new, ours))
        self.mask.apply_(model)

    def base(self, named: Any) -> Reference:
        """Return where the base is.

        Args:
            named: What the info of a ticket says of its ``base_model``: a repository, or one as ``id`` with its
                ``revision``.

        Raises:
            ValueError: It names no model on the Hub.
        """
        place = named if isinstance(named, Mapping) else {"id": named}
        if not place.get("id"):
            raise ValueError(
                "a ticket that is a difference must name its base on the Hub to build the model; received "
                f"base_model={named!r:.80}. Load the base model yourself, and call ticket.apply_(model)."
            )
        return Reference("pretrained", self.base_sha256, place["id"], place.get("revision"))

    def stage(self, stage: Path) -> dict[str, Any]:
        """Write the changes into ``stage``; return what the config of a ticket says of them."""
        tensors, specs = {}, {}
        for name, change in self.changes.items():
            tensors[name + _VALUES], encoding = change.values, _KEPT
            if not torch.equal(change.places, _all_kept(self.mask, name, change.places.shape)):
                tensors[name + _PLACES], encoding = encode(pack_bits(change.places), compress=True)
            specs[name] = {"shape": list(change.places.shape), "encoding": encoding}
        save_file(tensors, stage / DIFFERENCE_NAME, metadata={"format": "pt"})
        digest = sha256_of(stage / DIFFERENCE_NAME)
        own = {"step": self.step, "base_sha256": self.base_sha256, "file_sha256": digest, "changes": specs}
        return {"by": "difference", **own}

    @classmethod
    def read(cls, folder: Path, stated: Mapping[str, Any], mask: Mask) -> Difference:
        """Read and check the changes that :meth:`stage` wrote.

        Args:
            folder: The ticket's folder.
            stated: What :meth:`stage` returned.
            mask: The mask of the ticket.

        Raises:
            FileNotFoundError: The file is missing.
            MaskFileError: The file is not the one that ``stated`` is of.
        """
        path = folder / DIFFERENCE_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"the ticket must hold {DIFFERENCE_NAME}; received {folder} without. Save it again."
            )
        specs = _checked(stated, mask)
        check_sha256(path, stated["file_sha256"], CONFIG_NAME, MaskFileError)
        try:
            with safe_open(path, framework="pt") as file:
                wanted = {name + _VALUES for name in specs}
                wanted |= {name + _PLACES for name, spec in specs.items() if spec["encoding"] != _KEPT}
                if wanted != set(file.keys()):
                    raise MaskFileError(f"{path} must hold exactly the changes that {CONFIG_NAME} names.")
                changes = {name: _read_change(file, path, name, spec, mask) for name, spec in specs.items()}
        except SafetensorError as error:
            raise MaskFileError(f"{path} must be a whole safetensors file; received: {error!s:.200}.") from error
        return cls(stated["step"], stated["base_sha256"], mask, changes)

    def __repr__(self) -> str:
        values = sum(len(change.values) for change in self.changes.values())
        return f"Difference(step {self.step}, {len(self.changes)} changed tensors, {values:,} new values)"


def _kept(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    """The entries of a mask by the first name of each parameter; a tied one has several."""
    mask.check_fits(model)
    firsts = {id(tensor): name for name, tensor in named_state(model).items()}
    weights = named_weights(model)
    return {firsts[id(weights[name])]: entry for name, entry in mask.items()}


def _check_same(name: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    theirs, ours = (f"{list(t.shape)} {t.dtype}" if (t := d.get(name)) is not None else "none" for d in (before, after))
    if theirs != ours:
        raise MaskMismatchError(
            f"{name!r} must be the same in the base model and in the fine-tuned one; received {theirs} and {ours}. "
            "Pass the base model in the class and the precision that it was fine-tuned in."
        )


def _change(name: str, before: Tensor, after: Tensor, kept: Tensor | None) -> Change:
    old, new = whole(before).cpu().contiguous(), whole(after).cpu().contiguous()
    places = (_bytes(old) != _bytes(new)).any(1).reshape(new.shape)
    kept = torch.ones_like(places) if kept is None else kept
    if alive := int((new[~kept] != 0).sum()):
        raise ValueError(
            f"the model must be zero where the mask prunes; received {alive} other weights in {name!r}. Fine-tune it "
            "with SparsityCallback(mask), and merge adapters with merge_adapter."
        )
    places &= kept
    if 2 * int(places.sum()) > int(kept.sum()):
        places = kept
    return Change(places, new[places])


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of each number, ``[numbers, bytes]``: NaN equals itself there, and 0 differs from -0."""
    return tensor.reshape(-1).view(torch.uint8).reshape(tensor.numel(), tensor.itemsize)


def _blank(change: Change) -> Tensor:
    return torch.zeros(change.places.shape, dtype=change.values.dtype)


def _sha256_of_base(state: Mapping[str, Tensor], kept: Mapping[str, Tensor], changes: Mapping[str, Change]) -> str:
    """Hash what is taken from a base: what the mask prunes or a change replaces counts as zero."""
    taken = {}
    for name, tensor in state.items():
        copy = taken[name] = whole(tensor).to("cpu", copy=True, memory_format=torch.contiguous_format)
        if name in kept:
            copy[~kept[name]] = 0
        if name in changes:
            copy[changes[name].places] = 0
    return Snapshot(0, taken).sha256()


def _all_kept(mask: Mapping[str, Tensor], name: str, shape: Any) -> Tensor:
    return mask[name] if name in mask else torch.ones(shape, dtype=torch.bool)


def _checked(stated: Mapping[str, Any], mask: Mask) -> dict[str, Any]:
    """The specs of all changes, once every type is right and every shape is believable."""
    specs = stated.get("changes")
    texts = all(isinstance(stated.get(key), str) for key in ("base_sha256", "file_sha256"))
    if not texts or type(stated.get("step")) is not int or not isinstance(specs, dict):
        raise MaskFileError(f"{CONFIG_NAME} must state step, checksums and changes of a difference; received others.")
    for name, spec in specs.items():
        shape = spec.get("shape") if isinstance(spec, dict) else None
        sized = isinstance(shape, list) and all(type(size) is int and 0 <= size < 2**48 for size in shape)
        if (
            not sized
            or spec.get("encoding") not in (_KEPT, *ENCODINGS)
            or (name in mask and list(mask[name].shape) != shape)
        ):
            raise MaskFileError(
                f"{CONFIG_NAME} must state shape and encoding of the change of {name!r:.80}; received {spec!s:.80}."
            )
    return specs


def _read_change(file: Any, path: Path, name: str, spec: Mapping[str, Any], mask: Mask) -> Change:
    count, shape = math.prod(spec["shape"]), file.get_slice(name + _VALUES).get_shape()
    if spec["encoding"] != _KEPT:
        places = read_bits(file, name + _PLACES, count, path, encoding=spec["encoding"]).reshape(spec["shape"])
    elif name in mask or shape == [count]:  # a shape is believed only where as many values are stored
        places = _all_kept(mask, name, spec["shape"])
    else:
        places = torch.zeros(0, dtype=torch.bool)
    fits = shape == [int(places.sum())] and not (name in mask and bool((places & ~mask[name]).any()))
    if not fits:
        raise MaskFileError(f"{path}: {name!r:.80} must have a value for each of its places; received {shape!s:.80}.")
    return Change(places, file.get_tensor(name + _VALUES))
