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
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.multiprocessing.spawn import start_processes

from hf_lottery.pruning import histogram_selection
from hf_lottery.pruning.selection import remove_lowest

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
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    keep = remove_lowest(scores, remove)  # type: ignore[arg-type]
    seconds = time.process_time() - start
    extra = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    gone = sum(entry.numel() - int(entry.sum()) for entry in keep.values())
    found = torch.tensor([seconds, float(extra)], dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    if rank == 0:
        sent = sum(sums) + rows * COLUMNS * TENSORS
        torch.save((*found.tolist(), sent, len(sums), gone == remove), Path(folder) / "found")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort an interpreter that ends in the usual way


def main() -> None:
    """Print a row for every size and number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="+", default=[10_000_000, 100_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    print("| weights | processes | CPU s | ns a weight of a process | extra bytes a weight | sent | sums | exact |")
    for weights in args.weights:
        for processes in args.processes:
            with tempfile.TemporaryDirectory() as folder:
                start_processes(measure, (processes, folder, weights), nprocs=processes, start_method="spawn")
                seconds, extra, sent, sums, exact = torch.load(Path(folder) / "found")
            each = seconds * processes / weights * 1e9
            row = (f"{weights:,}", processes, f"{seconds:.2f}", f"{each:.1f}", f"{extra / weights:.2f}")
            print(*("", *row, f"{sent / 1e6:.1f} MB", sums, exact, ""), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
