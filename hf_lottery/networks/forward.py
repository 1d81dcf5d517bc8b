"""Forward: run a model on a batch of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Any]


def run(model: nn.Module, batch: Any, *, forward: Forward | None = None) -> Any:
    """Run a model on a batch and return its output.

    Args:
        model: The model.
        batch: A dict for ``model(**batch)``, a tuple or list for ``model(*batch)``, or a tensor. Its tensors are moved
            to the model's device.
        forward: Replaces the call of the model by ``forward(model, batch)``; the batch is not moved then.
    """
    if forward is not None:
        return forward(model, batch)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = _to(batch, device)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    return type(value)(_to(item, device) for item in value) if type(value) in (list, tuple) else value
