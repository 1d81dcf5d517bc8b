"""Shards: find and write the part of a tensor that this process holds, without gathering the rest.

``torch.distributed.fsdp.fully_shard`` (FSDP2) makes every parameter a ``DTensor``: each process holds a block. All
functions here also take plain tensors and return them unchanged, so that callers need no second branch. Functions
marked *collective* must be called by every process, in the same order.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(tensor: Any) -> bool:
    """Whether this is a DTensor. The class is not imported, as that takes a third of a second."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return the part that this process holds, detached; it shares memory with the tensor."""
    tensor = tensor.detach()
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor on this process's device, detached. Collective."""
    tensor = tensor.detach()
    if not is_sharded(tensor):
        return tensor
    # Not every backend can send bool tensors.
    sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
    return cast(Any, sent).full_tensor().to(tensor.dtype)


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Return the view of a plain tensor that covers this process's part of ``like``, a tensor of the same shape."""
    return full[tuple(slice(begin, begin + size) for begin, size in block(like))] if is_sharded(like) else full


def as_shards(full: Tensor, like: Tensor) -> Tensor:
    """Make a DTensor with the layout of ``like`` from a plain tensor that all processes have; nothing is sent."""
    return from_local(part_of(full, like).to(local(like).device).contiguous(), like)


def from_local(part: Tensor, like: Tensor) -> Tensor:
    """Make the DTensor with the layout of ``like`` in which this process holds ``part``; plain if ``like`` is."""
    if not is_sharded(like):
        return part
    made = cast(Any, like)
    stride = torch.empty(like.shape, device="meta").stride()
    return type(made).from_local(part, made.device_mesh, made.placements, shape=like.shape, stride=stride)


def block(tensor: Tensor) -> list[tuple[int, int]]:
    """Return where the local part of a DTensor lies in the whole: ``(begin, size)`` for each axis.

    Raises:
        NotImplementedError: The parts are not blocks, as with FSDP together with tensor parallelism.
    """
    made, begin, size = cast(Any, tensor), [0] * tensor.ndim, list(tensor.shape)
    for dimension, placement in enumerate(made.placements):
        if placement.is_replicate():
            continue
        axis = getattr(placement, "dim", 0) % max(tensor.ndim, 1)
        # torch gives every process ceil(n / processes) rows; the last processes may get fewer or none.
        step = -(-size[axis] // made.device_mesh.size(dimension))
        first = min(made.device_mesh.get_local_rank(dimension) * step, size[axis])
        begin[axis] += first
        size[axis] = min(step, size[axis] - first)
    blocks = all(type(p).__name__ in ("Shard", "Replicate") for p in made.placements)
    if not blocks or list(made._local_tensor.shape) != size:
        raise NotImplementedError(
            f"a sharded tensor must lie in blocks, as with fully_shard; received {made.placements}. "
            "Use FSDP2 alone, without tensor parallelism."
        )
    return list(zip(begin, size, strict=True))


def counts_here(tensor: Tensor) -> bool:
    """Whether this process counts its part: among processes that hold the same part, only the first one does."""
    made = cast(Any, tensor)
    pairs = enumerate(made.placements)
    return all(not p.is_replicate() or made.device_mesh.get_local_rank(dimension) == 0 for dimension, p in pairs)


def sum_over_shards(numbers: np.ndarray, like: Tensor) -> np.ndarray:
    """Sum integers over all processes that hold a part of ``like``. Collective."""
    mesh = cast(Any, like).device_mesh
    tensor = torch.from_numpy(np.ascontiguousarray(numbers, np.int64)).to(mesh.device_type)
    for dimension in range(mesh.ndim):
        dist.all_reduce(tensor, group=mesh.get_group(dimension))
    return tensor.cpu().numpy()


def reshard(model: nn.Module) -> None:
    """Let every FSDP2 module of ``model`` hold its sharded parameters again.

    After a forward pass the outermost module holds gathered parameters, and values written to these are lost without
    an error.
    """
    waiting, seen = [model], set()
    while waiting:  # every other function here begins with this walk, and model.modules() takes three times as long
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        waiting.extend(part for part in module._modules.values() if part is not None)
        if "FSDP" in type(module).__name__ and callable(put_back := getattr(module, "reshard", None)):
            put_back()


def own_class(module: nn.Module) -> type:
    """Return a module's own class; ``fully_shard`` replaces it by a subclass with another name."""
    kinds = type(module).__mro__
    return kinds[2] if kinds[1].__name__ == "FSDPModule" else kinds[0]


def class_name(module: nn.Module) -> str:
    """Return the name of a module's own class."""
    return own_class(module).__name__
