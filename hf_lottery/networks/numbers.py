"""Numbers: refuse weights that have only a shape or a code here, before anything reads or writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
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


def check_layouts(tensors: Mapping[str, Tensor]) -> None:
    """Check that every tensor stores its numbers one after the other.

    Args:
        tensors: Name -> parameter or buffer.

    Raises:
        ValueError: A tensor is in a sparse layout. The message names it and says what to do.
    """
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise ValueError(
                f"every weight and buffer must be a plain tensor of numbers; received {name!r} in the layout "
                f"{tensor.layout}. Put {name}.to_dense() in its place, or keep it outside of parameters and buffers."
            )


def check_plain(weights: Mapping[str, Any]) -> None:
    """Check that every weight is a plain tensor of numbers, which can be compared with zero and set to it.

    Args:
        weights: Name -> weight.

    Raises:
        ValueError: A weight is quantised, or in a sparse layout. The message names it and says what to do.
    """
    for name, weight in weights.items():
        if coded := _coded(weight):
            raise ValueError(f"every weight must be a plain tensor of numbers; received {name!r} {coded}")


def _coded(weight: Any) -> str | None:
    """How a weight is stored other than by its numbers, and what to do about it; None if it is not."""
    if weight.layout is not torch.strided:
        return f"in the layout {weight.layout}. Put a plain parameter in its place, made of weight.to_dense()."
    wrapped = hasattr(weight, "__tensor_flatten__") and not hasattr(weight, "placements")  # as torchao's; no DTensor
    integers = isinstance(weight, nn.Parameter) and not (weight.is_floating_point() or weight.is_complex())
    eight_bits = weight.is_floating_point() and weight.element_size() == 1
    if wrapped or integers or eight_bits or weight.is_quantized:
        return (
            f"of {weight.dtype} ({type(weight).__name__}), which stores codes of its numbers. "
            "Load the model without quantisation, or dequantise it first."
        )
    return None


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
