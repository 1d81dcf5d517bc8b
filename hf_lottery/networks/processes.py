"""Processes: sums and lists over the processes of ``torch.distributed``; a single process is a group of one."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def several() -> bool:
    """Whether this process is one of a group of ``torch.distributed``."""
    return dist.is_available() and dist.is_initialized()


def sum_over_processes(x: Tensor) -> Tensor:
    """Return the sum over all processes, the same on each of them. ``x`` may be overwritten."""
    if several():
        x = x.contiguous()
        dist.all_reduce(x)
    return x


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in their order. The values are pickled, so they should be small."""
    if not several():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def reducing_device() -> torch.device:
    """Return the device on which tensors must lie to be summed, for a process without any."""
    nccl = several() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
