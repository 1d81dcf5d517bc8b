"""Weight masks: set the pruned entries of one tensor to exactly zero, in place and fast.

A pruned entry becomes 0 whatever it was, NaN and infinities too: the numbers are read as integers, and cleared bit by
bit or multiplied by 0. Multiplying floating-point numbers by 0 takes as long, but leaves NaN.

The masks run between two operations of the network, when no cache holds their code and data. Every line of Python
counts there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..masks.file import pack_bits
from ..networks.shards import local

_CHUNK = 2**16  # weights that are unpacked at once on the CPU, in its cache
_PIECE = 2**22  # elsewhere
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class WeightMask(Protocol):
    """The mask of one weight. ``tensor`` has the weight's shape, and any dtype and device."""

    def clear_pruned_(self, tensor: Tensor) -> None:
        """Set the pruned entries to 0."""
        ...

    def clear_kept_(self, tensor: Tensor) -> None:
        """Set the kept entries to 0."""
        ...

    def at(self, indices: Tensor) -> Tensor:
        """Return which entries are kept, bool, at ``indices [axes, places]`` of the first axes."""
        ...


class NumberMask:
    """A mask of one integer for each weight, with all bits set or none. A bool mask takes ten times as long."""

    def __init__(self, mask: Tensor, weight: Tensor):
        # The mask takes the weight's memory format: a channels-last weight and a contiguous mask would be slow.
        self.keep = _as_integers(torch.empty_like(weight))
        self.keep.copy_(_as_wide(mask, self.keep)).neg_()

    def clear_pruned_(self, tensor: Tensor) -> None:
        numbers = _as_integers(tensor)
        if self.keep.dtype != numbers.dtype or self.keep.device != numbers.device:  # the model was cast or moved
            self.keep = self.keep.to(numbers)
        numbers.bitwise_and_(self.keep)

    def clear_kept_(self, tensor: Tensor) -> None:
        numbers = _as_integers(tensor)
        numbers.bitwise_and_(self.keep.to(numbers).bitwise_not())

    def at(self, indices: Tensor) -> Tensor:
        return self.keep.to(indices.device)[tuple(indices)] != 0


class BitMask:
    """A mask of one bit for each weight, which is unpacked piece by piece where the weight is."""

    def __init__(self, mask: Tensor, weight: Tensor):
        numbers = _as_integers(weight)
        self.shape = numbers.shape
        self.bits = pack_bits(_as_wide(mask, numbers))

    def clear_pruned_(self, tensor: Tensor) -> None:
        numbers = _as_integers(tensor)
        flat = numbers.reshape(-1)  # a copy if the tensor is not contiguous
        if flat.is_cpu:
            clear_on_cpu_(self.bits, flat)
        else:
            self.bits = self.bits.to(flat.device)  # where it stays, until the model moves again
            clear_elsewhere_(self.bits, flat)
        _write_back(flat, numbers)

    def clear_kept_(self, tensor: Tensor) -> None:
        numbers = _as_integers(tensor)
        flat = numbers.reshape(-1)
        for part, keep in _unpacked(self.bits, flat):
            part.mul_(1 - keep)
        _write_back(flat, numbers)

    def at(self, indices: Tensor) -> Tensor:
        lead, inner = len(indices), self.shape[len(indices) :]
        sizes = torch.tensor([self.shape[axis + 1 : lead].numel() for axis in range(lead)], device=indices.device)
        rows = (indices * sizes[:, None]).sum(0)
        places = rows[:, None] * inner.numel() + torch.arange(inner.numel(), device=indices.device)
        kept = self.bits.to(indices.device)[places >> 3] >> (places & 7).to(torch.uint8) & 1
        return (kept != 0).view(-1, *inner)


def clear_on_cpu_(bits: Tensor, flat: Tensor) -> None:
    """Multiply by bytes directly, as numpy can; torch would first convert them to the type of the tensor."""
    packed, numbers = bits.cpu().numpy(), flat.numpy()
    for begin in range(0, len(numbers), _CHUNK):
        part = numbers[begin : begin + _CHUNK]
        keep = np.unpackbits(packed[begin // 8 : (begin + _CHUNK) // 8], count=len(part), bitorder="little")
        np.multiply(part, keep, out=part)


def clear_elsewhere_(bits: Tensor, flat: Tensor) -> None:
    """Multiply on the device of the tensor."""
    for part, keep in _unpacked(bits, flat):
        part.mul_(keep)


def _unpacked(bits: Tensor, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pieces of a tensor with their bits as 0 or 1; large pieces, as each needs several kernels."""
    bits, shifts = bits.to(flat.device), torch.arange(8, dtype=torch.uint8, device=flat.device)
    for begin in range(0, len(flat), _PIECE):
        part = flat[begin : begin + _PIECE]
        keep = bits[begin // 8 : (begin + _PIECE) // 8, None] >> shifts & 1
        yield part, keep.view(-1)[: len(part)].to(part.dtype)


def clear_pruned_gradient_(weight: Tensor, mask: WeightMask) -> None:
    """Set the pruned entries of a weight's gradient to 0, if it has one."""
    gradient = weight.grad
    if gradient is None:
        return
    if gradient.layout is torch.sparse_coo:  # an embedding with sparse=True; only the rows that were read have one
        weight.grad = gradient = gradient.coalesce()
        gradient.values().masked_fill_(~mask.at(gradient.indices()), 0)
        return
    if gradient.requires_grad:  # backward(create_graph=True): what is derived from it must not see pruned ones either
        keep = torch.ones_like(gradient)
        mask.clear_pruned_(local(keep))
        weight.grad = gradient = gradient * keep
    mask.clear_pruned_(local(gradient))


def _as_integers(tensor: Tensor) -> Tensor:
    """Return the same memory, read as integers; a complex number is two of them, along a last axis."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGERS[tensor.itemsize])


def _as_wide(mask: Tensor, numbers: Tensor) -> Tensor:
    return mask.reshape((*mask.shape, *[1] * (numbers.ndim - mask.ndim))).expand(numbers.shape)


def _write_back(flat: Tensor, numbers: Tensor) -> None:
    if flat.data_ptr() != numbers.data_ptr():
        numbers.copy_(flat.view(numbers.shape))
