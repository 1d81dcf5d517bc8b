"""Measure the exact selection over shards on several processes: its time, and what it adds to the memory of each.

    python recipes/benchmarks/sharded_prune.py --weights 10_000_000 100_000_000 1_000_000_000 --processes 1 2 4

Every process holds its rows of 20 score tensors. Time is the CPU time of the slowest process. Extra memory is what one
selection adds to the peak resident set of a process that holds its scores; it includes the finished mask, one byte for
each weight. ``sent`` is what a process sends for the sums and for gathering the mask.
"""

import argparse
import os
import resource
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from timing import timed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.multiprocessing.spawn import start_processes

from hf_lottery.pruning import histogram_selection
from hf_lottery.pruning.selection import remove_lowest
from hf_lottery.report import markdown_table

HEADER = [
    "weights", "processes", "CPU s", "ns a weight of a process", "extra bytes a weight", "sent", "sums", "exact",
]  # fmt: skip
TENSORS, COLUMNS, SPARSITY = 20, 1000, 0.8


def measure(rank: int, processes: int, folder: str, weights: int) -> None:
    """Select on one process of several. The first process writes seconds, bytes, sums, and whether counts are exact."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    mesh = init_device_mesh("cpu", (processes,))
    rows = weights // TENSORS // COLUMNS // processes
    draw = torch.Generator().manual_seed(rank)
    scores = {
        f"w{i:02}": DTensor.from_local(torch.randn(rows, COLUMNS, generator=draw).abs_(), mesh, [Shard(0)])
        for i in range(TENSORS)
    }
    remove, sums = round(SPARSITY * rows * processes * COLUMNS * TENSORS), []
    add = histogram_selection.sum_over_shards
    histogram_selection.sum_over_shards = lambda numbers, like: (sums.append(numbers.nbytes), add(numbers, like))[1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, keep = timed(lambda: remove_lowest(scores, remove))  # type: ignore[arg-type]
    extra = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    gone = sum(entry.numel() - int(entry.sum()) for entry in keep.values())
    found = torch.tensor([seconds, float(extra)], dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    if rank == 0:
        sent = sum(sums) + rows * COLUMNS * TENSORS
        torch.save((*found.tolist(), sent, len(sums), gone == remove), Path(folder) / "found")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort an interpreter that ends in the usual way


def row(weights: int, processes: int) -> list[str]:
    """Measure one size on a number of processes."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(measure, (processes, folder, weights), nprocs=processes, start_method="spawn")
        seconds, extra, sent, sums, exact = torch.load(Path(folder) / "found")
    each = seconds * processes / weights * 1e9
    numbers = [f"{weights:,}", str(processes), f"{seconds:.2f}", f"{each:.1f}", f"{extra / weights:.2f}"]
    return [*numbers, f"{sent / 1e6:.1f} MB", str(sums), "yes" if exact else "no"]


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of one and two processes, under ``HEADER``; quick ones are of a million weights."""
    return [row(1_000_000 if quick else 10_000_000, processes) for processes in (1, 2)]


def main() -> None:
    """Print a row for every size and number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="+", default=[10_000_000, 100_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    print(markdown_table(HEADER, [row(weights, n) for weights in args.weights for n in args.processes]))


if __name__ == "__main__":
    main()
