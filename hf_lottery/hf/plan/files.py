"""Sizes of files that are not written: the bytes that tensors, a JSON value or a pickle would take on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ...storage.encoding import encode, pack_bits, packed_size

_SAMPLE = 2**17  # bits; they compress within 1 % of the ratio of more bits, in milliseconds


def tensors_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Return the bytes of the safetensors file of ``tensors``, which may lie on the meta device."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.itemsize
        # Every dtype has a name of two to four letters.
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text // 8) * 8 + end


def json_file(value: Any) -> int:
    """Return the bytes of ``value`` as JSON, indented by two like every configuration of this library."""
    return len(json.dumps(value, indent=2)) + 1


def torch_file(value: Any) -> int:
    """Return the bytes of ``torch.save(value)``. A tensor on the meta device counts like one with numbers."""
    left_out = 0

    def stand_in(tensor: Tensor) -> Tensor:
        nonlocal left_out
        if not tensor.is_meta:
            return tensor
        small = torch.zeros(min(tensor.numel(), 1), dtype=tensor.dtype)
        left_out += (tensor.numel() - small.numel()) * tensor.itemsize
        return small

    counter = _Counter()
    torch.save(tree_map_only(Tensor, stand_in, value), counter)  # pyright: ignore[reportArgumentType]
    return counter.bytes + left_out


@lru_cache(maxsize=4096)
def compressed_bits(count: int, density: float) -> int:
    """Return the bytes that ``count`` random mask bits take in a compressed mask file.

    Masks of trained networks are less random, so this is an upper estimate. The compression is measured on a sample.

    Args:
        count: Number of bits.
        density: Fraction of the bits that are True.
    """
    if not count or density in (0.0, 1.0):
        return 0  # a series does not store a level that keeps all or none
    sample = min(count, _SAMPLE)
    bits = torch.rand(sample, generator=torch.Generator().manual_seed(0)) < density
    stored, _ = encode(pack_bits(bits), compress=True)
    return round(packed_size(count) * len(stored) / packed_size(sample))


class _Counter(io.RawIOBase):
    """A file that counts its bytes and stores none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.bytes += len(data)
        return len(data)
