"""Kept buffers: what a forward pass changes in a model besides its outputs, such as counters, is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
