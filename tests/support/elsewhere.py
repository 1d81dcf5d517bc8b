"""A device that is none: tensors that say they are on an accelerator, and a count of what is fetched from there."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("xla", 0)  # torch knows the name, and needs nothing installed for it


class Elsewhere(Tensor):
    """A tensor on the device, whose numbers lie in ``here``; it is used within :class:`Fetches` alone."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor):
        layout: Any = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made = Tensor._make_wrapper_subclass(cls, here.shape, device=DEVICE, **layout)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} was called on a tensor elsewhere, outside of Fetches")

    # torch's own ones look for the device itself.
    def __int__(self):
        return int(self.item())

    def __float__(self):
        return float(self.item())

    def __bool__(self):
        return bool(self.item())

    def __invert__(self):
        return torch.ops.aten.bitwise_not.default(self)

    def nonzero(self):
        return torch.ops.aten.nonzero.default(self)

    def __getitem__(self, index):
        if isinstance(index, Tensor):
            return torch.ops.aten.index.Tensor(self, [index])
        return torch.ops.aten.slice.Tensor(self, 0, index.start, index.stop)

    def __setitem__(self, index, value):
        if isinstance(index, Tensor):
            torch.ops.aten.index_put_.default(self, [index], value)
        else:
            assert index == slice(None)
            torch.ops.aten.copy_.default(self, value)


class Fetches(TorchDispatchMode):
    """Compute on both devices, and note what is fetched from the other one.

    Attributes:
        tensors: dtype and number of elements of every tensor that was copied from there.
        numbers: How many single numbers were.
    """

    def __init__(self):
        super().__init__()
        self.tensors: list[tuple[torch.dtype, int]] = []
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, there = dict(kwargs or {}), []

        def unwrapped(value):
            if isinstance(value, Elsewhere):
                there.append(value)
                return value.here
            # As on every accelerator, a tensor of one number may be on the host.
            assert not isinstance(value, Tensor) or not value.ndim or not there, f"{function}: tensors of two devices"
            return value

        target = kwargs.pop("device", None)
        result = function(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
        stays = bool(there) if target is None else torch.device(target).type == DEVICE.type
        if there and function is torch.ops.aten._local_scalar_dense.default:
            self.numbers += 1
        elif there and not stays:
            self.tensors.append((there[0].dtype, there[0].numel()))
        return tree_map(lambda value: Elsewhere(value) if stays and isinstance(value, Tensor) else value, result)
