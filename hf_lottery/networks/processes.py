"""Processes: what several processes of ``torch.distributed`` have together; one alone has what it has."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def several() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum over all processes, the same on each; ``x`` may be overwritten."""
    if several():
        x = x.contiguous()
        dist.all_reduce(x)
    return x


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order; they are pickled, so let them be small."""
    if not several():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def reducing_device() -> torch.device:
    """Where tensors must lie to be summed, for a process that has none."""
    nccl = several() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
