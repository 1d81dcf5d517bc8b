"""Snapshot: weights and buffers of a model at one moment, in memory or in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..masks.mask import MaskMismatchError
from ..networks.names import named_state
from ..networks.numbers import check_numbers
from ..networks.shards import is_sharded, local, part_of, whole
from ..storage.atomic import staged_file
from ..storage.encoding import MaskFileError

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Snapshot:
    """Weights and buffers of a model at one moment, on the CPU.

    Attributes:
        step: Optimizer steps taken before the capture.
        tensors: Plain name -> parameter or buffer. A tied tensor occurs once.
    """

    step: int
    tensors: Mapping[str, Tensor]

    def __post_init__(self):
        check_numbers(self.tensors)

    @classmethod
    def capture(cls, model: nn.Module, *, step: int = 0) -> Snapshot:
        """Copy every parameter and buffer of ``model``, including buffers that are not saved with it.

        Of a PEFT model, the base is copied, under the names that it has without PEFT, and the adapters are not.

        If the model is sharded, every process must call this, and each gets the whole copy. :func:`save_snapshot` needs
        less memory.

        Raises:
            ValueError: A parameter or buffer has no numbers, as on the meta device, or is in a sparse layout.
        """
        copy = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
        return cls(step, {name: whole(tensor).to(**copy) for name, tensor in named_state(model).items()})

    @classmethod
    def load(cls, path: str | Path) -> Snapshot:
        """Load a snapshot that :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            MaskFileError: The file is damaged or is not a snapshot.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"the rewind weights must be in {path}; received no such file. Check the path.")
        try:
            with safe_open(path, framework="pt") as file:
                step = (file.metadata() or {}).get("step", "")
                if not (step.isascii() and step.isdecimal() and len(step) < 19):
                    raise MaskFileError(f"{path} must state the step it was captured at; received {step!r:.80}.")
                return cls(int(step), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise MaskFileError(f"{path} must be a whole safetensors file; received: {error!s:.200}.") from error

    def save(self, path: str | Path) -> None:
        """Write the snapshot to ``path`` as safetensors; the file is never visible half-written."""
        _write(path, _header(self.step, self.tensors), (self.tensors[name] for name in _stored_order(self.tensors)))

    @torch.no_grad()
    def restore_(self, model: nn.Module) -> None:
        """Put the weights and buffers back into ``model``, bit for bit, in place.

        Raises:
            MaskMismatchError: The model has other names, shapes or dtypes; nothing was changed.
            ValueError: A parameter has no numbers, as on the meta device; nothing was changed.
        """
        state = named_state(model)
        if only := state.keys() ^ self.tensors.keys():
            raise MaskMismatchError(f"the model must have the snapshot's parameters; only one has {min(only)!r}.")
        for name, tensor in self.tensors.items():
            if (state[name].shape, state[name].dtype) != (tensor.shape, tensor.dtype):
                raise MaskMismatchError(
                    f"{name!r} must have the snapshot's shape {list(tensor.shape)} and {tensor.dtype}; "
                    f"received {list(state[name].shape)} and {state[name].dtype}."
                )
        for name, tensor in self.tensors.items():
            local(state[name]).copy_(part_of(tensor, state[name]))

    def __repr__(self) -> str:
        numbers = sum(tensor.numel() for tensor in self.tensors.values())
        return f"Snapshot(step {self.step}, {len(self.tensors)} tensors, {numbers:,} numbers)"

    def sha256(self) -> str:
        """Hash names, dtypes, shapes and bytes; equal weights give the same hash wherever they were saved."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def save_snapshot(model: nn.Module, path: str | Path, *, step: int = 0, write: bool = True) -> None:
    """Capture a model into the file that :meth:`Snapshot.save` would write, one tensor at a time, without a full copy.

    Args:
        model: The model. If it is sharded, every process must call this.
        path: The file to write; it is never visible half-written.
        step: Optimizer steps taken.
        write: Whether this process writes. The other processes only provide their shards.
    """
    state = named_state(model)
    names, header = _stored_order(state), _header(step, state)  # every process raises its errors
    if write:
        _write(path, header, (whole(state[name]) for name in names))
    else:
        for name in names:
            if is_sharded(state[name]):
                whole(state[name])


def _stored_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Sort names by item size, largest first, so that each number lies at a multiple of its size."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _header(step: int, shapes: Mapping[str, Tensor]) -> bytes:
    """Make the header of a safetensors file of these tensors, in the order in which they are stored."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "step": str(step)}}
    end = 0
    for name in _stored_order(shapes):
        begin, end = end, end + shapes[name].numel() * shapes[name].dtype.itemsize
        if shapes[name].dtype not in _TYPES:
            raise TypeError(f"{name!r} must be of a type that safetensors stores; received {shapes[name].dtype}.")
        kind, shape = _TYPES[shapes[name].dtype], list(shapes[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(path: str | Path, header: bytes, tensors: Iterable[Tensor]) -> None:
    """Write a safetensors file as a stream; the library's own functions need all tensors in memory at once."""
    with staged_file(path) as file:
        file.write(header)
        for tensor in tensors:
            tensor = tensor.detach().cpu().resolve_conj().contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
