"""Numbers: refuse weights that have only a shape here, before anything reads or writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy


def check_numbers(tensors: nn.Module | Mapping[str, Any]) -> None:
    """Check that every tensor has its numbers in memory.

    Writing to a tensor without numbers changes nothing, and torch does not say so.

    Args:
        tensors: A module, of which all parameters and buffers count, or a mapping from name to tensor.

    Raises:
        ValueError: A tensor has no numbers. The message names it and says why.
    """
    if isinstance(tensors, nn.Module):
        tensors = dict((*tensors.named_parameters(), *tensors.named_buffers()))
    for name, tensor in tensors.items():
        if missing := _missing(tensor):
            raise ValueError(f"every weight must have its numbers in memory; received {name!r} {missing}")


def _missing(tensor: Any) -> str | None:
    """Why a tensor has no numbers, and what to do about it; None if it has them."""
    if is_lazy(tensor):
        return "of a lazy module, which has no shape yet. Run the model on one batch first."
    if getattr(tensor, "is_meta", False) or hasattr(tensor, "fake_mode"):
        return (
            "on the meta device, where weights are that accelerate offloaded or that were never loaded. "
            "Load the whole model into memory, without offloading."
        )
    if hasattr(tensor, "ds_shape") and tuple(tensor.shape) != tuple(tensor.ds_shape):
        return "partitioned by DeepSpeed. Use FSDP2, or gather the weights with deepspeed.zero.GatheredParameters."
    return None
