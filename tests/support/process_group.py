"""Run a function on several processes of one gloo group, and get back what each returned."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on(processes: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(rank, *args)`` on each process; it must be importable, and what it returns be picklable."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_run, (processes, folder, function, args), nprocs=processes, start_method="spawn")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def _run(rank: int, processes: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    torch.save(function(rank, *args), Path(folder) / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort an interpreter that ends in the usual way
