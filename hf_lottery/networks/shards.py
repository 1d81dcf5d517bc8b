"""Sharded tensors: the part of a tensor that this process holds, found and written without gathering the rest.

``torch.distributed.fsdp.fully_shard`` (FSDP2) makes every parameter a ``DTensor``: each process holds a block. All
functions here take plain tensors too, which they leave as they are, so the code that calls them is written once. Those
marked *collective* must be called by every process, in the same order.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(tensor: Any) -> bool:
    """Whether this is a DTensor. Its class is not named here, as importing it takes a third of a second."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, detached; it shares memory with the tensor."""
    tensor = tensor.detach()
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor on this process's device, detached. Collective."""
    tensor = tensor.detach()
    if not is_sharded(tensor):
        return tensor
    # Not every backend sends truth values.
    sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
    return cast(Any, sent).full_tensor().to(tensor.dtype)


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """The view of a plain tensor that covers what this process holds of ``like``, a tensor of the same shape."""
    return full[tuple(slice(begin, begin + size) for begin, size in block(like))] if is_sharded(like) else full


def as_shards(full: Tensor, like: Tensor) -> Tensor:
    """A plain tensor, the same on every process, as a DTensor with the layout of ``like``; nothing is sent."""
    return from_local(part_of(full, like).to(local(like).device).contiguous(), like)


def from_local(part: Tensor, like: Tensor) -> Tensor:
    """The DTensor with the layout of ``like`` of which this process holds ``part``; plain if ``like`` is."""
    if not is_sharded(like):
        return part
    made = cast(Any, like)
    stride = torch.empty(like.shape, device="meta").stride()
    return type(made).from_local(part, made.device_mesh, made.placements, shape=like.shape, stride=stride)


def block(tensor: Tensor) -> list[tuple[int, int]]:
    """Where the local part of a DTensor lies in the whole: ``(begin, size)`` for each axis.

    Raises:
        NotImplementedError: The layout is not one of blocks, as that of FSDP together with tensor parallelism.
    """
    made, begin, size = cast(Any, tensor), [0] * tensor.ndim, list(tensor.shape)
    for dimension, placement in enumerate(made.placements):
        if placement.is_replicate():
            continue
        axis = getattr(placement, "dim", 0) % max(tensor.ndim, 1)
        # torch gives every process ceil(n / processes) rows, and the last ones fewer or none.
        step = -(-size[axis] // made.device_mesh.size(dimension))
        first = min(made.device_mesh.get_local_rank(dimension) * step, size[axis])
        begin[axis] += first
        size[axis] = min(step, size[axis] - first)
    blocks = all(type(p).__name__ in ("Shard", "Replicate") for p in made.placements)
    if not blocks or list(made._local_tensor.shape) != size:
        raise NotImplementedError(
            f"a sharded tensor must lie in blocks, as fully_shard lays it; received {made.placements}. "
            "Use FSDP2 alone, without tensor parallelism."
        )
    return list(zip(begin, size, strict=True))


def counts_here(tensor: Tensor) -> bool:
    """Whether this process counts what it holds: of several that hold the same, only the first does."""
    made = cast(Any, tensor)
    pairs = enumerate(made.placements)
    return all(not p.is_replicate() or made.device_mesh.get_local_rank(dimension) == 0 for dimension, p in pairs)


def sum_over_shards(numbers: np.ndarray, like: Tensor) -> np.ndarray:
    """Sums of integers over all processes that hold a part of ``like``. Collective."""
    mesh = cast(Any, like).device_mesh
    tensor = torch.from_numpy(np.ascontiguousarray(numbers, np.int64)).to(mesh.device_type)
    for dimension in range(mesh.ndim):
        dist.all_reduce(tensor, group=mesh.get_group(dimension))
    return tensor.cpu().numpy()


def reshard(model: nn.Module) -> None:
    """Let every FSDP2 module of ``model`` show its sharded parameters again.

    After a forward pass the outermost does not, and what is written to its gathered ones is lost without an error.
    """
    for module in model.modules():
        if "FSDP" in type(module).__name__ and callable(put_back := getattr(module, "reshard", None)):
            put_back()


def class_name(module: nn.Module) -> str:
    """The name of a module's own class; ``fully_shard`` makes a subclass of it that is called otherwise."""
    names = [kind.__name__ for kind in type(module).__mro__]
    return names[2] if names[1] == "FSDPModule" else names[0]
