"""Forward: run a model on a batch of any kind."""

from __future__ import annotations

import inspect
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

    Raises:
        ValueError: The model does not take these arguments.
    """
    if forward is not None:
        return forward(model, batch)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = _to(batch, device)
    if isinstance(batch, Mapping):
        _check_arguments(model, **batch)
        return model(**batch)
    if isinstance(batch, tuple | list):
        _check_arguments(model, *batch)
        return model(*batch)
    return model(batch)


def _check_arguments(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    try:
        takes = inspect.signature(model.forward)
    except (TypeError, ValueError):  # some compiled modules have none
        return
    try:
        takes.bind(*args, **kwargs)
    except TypeError as error:
        received = f"the keys {sorted(kwargs)}" if kwargs else f"a tuple of {len(args)}"
        raise ValueError(
            f"a batch must hold the arguments of {type(model).__name__}.forward; received {received} ({error}). "
            "If it also holds targets, pass forward=lambda model, batch: model(batch[0]), or whatever picks the inputs."
        ) from error


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    return type(value)(_to(item, device) for item in value) if type(value) in (list, tuple) else value
