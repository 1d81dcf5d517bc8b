"""Kept models: what a forward pass changes in a model besides its outputs, such as counters, is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .ghosts import written
from .reads import memory

# What a module holds by name: parameters, buffers, modules, and hooks, which transformers adds in the first pass that
# needs them, with an attribute that says so.
_HELD = [name for name, value in vars(nn.Module()).items() if isinstance(value, dict)]


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Put the buffers of a model back at the end of a block, bit for bit, also after an error.

    A buffer that has got another shape stays as it is: the model has extended it for good, and may count on that.
    """
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                now = module._buffers.get(name)
                if now is not None and now.shape == value.shape:
                    buffer.detach().copy_(value)
                    module._buffers[name] = buffer


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put a model back at the end of a block of forward passes, bit for bit, also after an error.

    Parameters and buffers get their numbers back and their places, and modules the attributes and hooks that they had.
    A tensor is copied only once something is to be written into it. What a pass changes inside an object that is
    neither a tensor nor a module, such as a list, stays changed.
    """
    modules = [
        (module, {**vars(module)}, {kind: {**vars(module)[kind]} for kind in _HELD}) for module in model.modules()
    ]
    guard = _Guard(
        tensor for _, _, held in modules for kind in ("_parameters", "_buffers") for tensor in held[kind].values()
    )
    try:
        with guard:
            yield
    finally:
        for module, attributes, held in modules:
            _put_back(vars(module), attributes)
            for kind, values in held.items():
                _put_back(vars(module)[kind], values)
        guard.restore()


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Give a dict the entries that it had."""
    for name in now.keys() - before.keys():
        del now[name]
    now.update(before)


class _Guard(TorchDispatchMode):
    """Copies tensors before something is written into them."""

    def __init__(self, tensors: Iterator[Tensor | None]):
        super().__init__()
        self._shown = [(tensor, tensor.detach()) for tensor in tensors if tensor is not None and not tensor.is_meta]
        self._clean: dict[int, list[Tensor]] = {}
        for _, shown in self._shown:
            self._clean.setdefault(memory(shown), []).append(shown)
        self._copies: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.is_mutable:
            for value in written(func, args, kwargs or {}):
                if isinstance(value, Tensor):
                    self._copies += [(shown, shown.clone()) for shown in self._clean.pop(memory(value), ())]
        return func(*args, **(kwargs or {}))

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the numbers, and the memory of tensors whose ``data`` is another tensor now."""
        for shown, copy in self._copies:
            shown.copy_(copy)
        for tensor, shown in self._shown:
            if memory(tensor) != memory(shown):
                tensor.data = shown
