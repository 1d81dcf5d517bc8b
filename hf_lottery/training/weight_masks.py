"""Weight masks: set the pruned entries of one tensor to exactly zero, in place and fast.

A pruned entry becomes 0 whatever it was, NaN and infinities too: the numbers are read as integers, and cleared bit by
bit or multiplied by 0. Multiplying floating-point numbers by 0 takes as long, but leaves NaN.

The masks run between two operations of the network, when no cache holds their code and data. Every line of Python
counts there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..masks.file import pack_bits

_CHUNK = 2**16
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
    """A mask of one bit for each weight, which is unpacked 65,536 weights at a time."""

    def __init__(self, mask: Tensor, weight: Tensor):
        numbers = _as_integers(weight)
        self.shape = numbers.shape
        self.bits = pack_bits(_as_wide(mask, numbers)).numpy()

    def clear_pruned_(self, tensor: Tensor) -> None:
        numbers = _as_integers(tensor)
        flat = numbers.reshape(-1)  # a copy if the tensor is not contiguous
        if flat.is_cpu:
            # numpy multiplies by bytes directly, while torch would first convert them to the tensor's type.
            for part, keep in self._unpack(flat.numpy()):
                np.multiply(part, keep, out=part)
        else:
            for part, keep in self._unpack(flat):
                part.mul_(torch.from_numpy(keep).to(part))
        _write_back(flat, numbers)

    def clear_kept_(self, tensor: Tensor) -> None:
        numbers = _as_integers(tensor)
        flat = numbers.reshape(-1)
        for part, keep in self._unpack(flat):
            part.mul_(1 - torch.from_numpy(keep).to(part))
        _write_back(flat, numbers)

    def at(self, indices: Tensor) -> Tensor:
        lead = len(indices)
        rows = np.asarray(np.ravel_multi_index(tuple(indices.cpu().numpy()), self.shape[:lead]))
        inner = self.shape[lead:].numel()
        places = rows[:, None] * inner + np.arange(inner)
        kept = (self.bits[places >> 3] >> (places & 7)) & 1
        return torch.from_numpy(kept.astype(bool)).view(-1, *self.shape[lead:]).to(indices.device)

    def _unpack(self, flat: Any) -> Iterator[tuple[Any, np.ndarray]]:
        for begin in range(0, len(flat), _CHUNK):
            part, bits = flat[begin : begin + _CHUNK], self.bits[begin // 8 : (begin + _CHUNK) // 8]
            yield part, np.unpackbits(bits, count=len(part), bitorder="little")


def clear_pruned_gradient_(weight: Tensor, mask: WeightMask, part: Tensor) -> None:
    """Set the pruned entries of a weight's gradient to 0; ``part`` is what this process holds of the gradient."""
    if part.layout is not torch.sparse_coo:
        mask.clear_pruned_(part)
        return
    gradient = part.coalesce()  # an embedding with sparse=True; only the rows that were read have a gradient
    gradient.values().masked_fill_(~mask.at(gradient.indices()), 0)
    weight.grad = gradient


def _as_integers(tensor: Tensor) -> Tensor:
    """Return the same memory, read as integers; a complex number is two of them, along a last axis."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(_INTEGERS[tensor.itemsize])


def _as_wide(mask: Tensor, numbers: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (numbers.ndim - mask.ndim)).expand(numbers.shape)


def _write_back(flat: Tensor, numbers: Tensor) -> None:
    if flat.data_ptr() != numbers.data_ptr():
        numbers.copy_(flat.view(numbers.shape))
