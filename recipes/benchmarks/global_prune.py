"""Time prune() as users call it, beside numpy.partition and torch.nn.utils.prune, and check that counts are exact.

    python recipes/benchmarks/global_prune.py --repeats 9
    python recipes/benchmarks/global_prune.py --weights 100_000_000 --torch-weights 100_000_000 --repeats 1   # 6 GB

It uses one thread and measures the CPU time of the process, which other processes disturb little. All rows of a size
live in one process and take turns. Extra memory is what one run adds to the peak resident set (ru_maxrss) of a process
that holds the scores; it is measured in a process of its own, and includes the mask.
"""

import argparse
import multiprocessing
import resource
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from timing import timed
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from hf_lottery import Mask, n_of_m, prune
from hf_lottery.report import markdown_table

SPARSITY = 0.8
HEADER = ["what", "dtype", "weights", "tensors", "ns a weight, least", "median", "extra bytes a weight", "exact"]
Scores = Mapping[str, Tensor]


def make_scores(weights: int, tensors: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = weights // tensors // 4 + 1
    empty = {f"w{i:03}": torch.empty(rows, 4, dtype=dtype) for i in range(tensors)}
    return {name: score.normal_(generator=generator).abs_() for name, score in empty.items()}


def half_dead(scores: Scores) -> Mask:
    generator = torch.Generator().manual_seed(1)
    empty = {name: torch.empty(score.shape, dtype=torch.bool) for name, score in scores.items()}
    return Mask({name: entry.bernoulli_(0.5, generator=generator) for name, entry in empty.items()}, copy=False)


def by_prune(scores: Scores, within: Mask | None) -> Mapping[str, Tensor]:
    return prune(scores, SPARSITY)


def by_prune_within(scores: Scores, within: Mask | None) -> Mapping[str, Tensor]:
    return prune(scores, SPARSITY, within=within)


def by_prune_2_of_4(scores: Scores, within: Mask | None) -> Mapping[str, Tensor]:
    return prune(scores, 0.5, scope=n_of_m(2, 4))


def by_six_comparisons(scores: Scores, within: Mask | None) -> Mapping[str, Tensor]:
    """2 of 4 by hand, a whole tensor at once."""
    keep = {}
    for name, score in scores.items():
        columns = score.float().numpy().T
        wins = np.zeros(columns.shape, np.uint8)
        for i in range(4):
            for j in range(i + 1, 4):
                first = columns[i] > columns[j]
                wins[i] += first
                wins[j] += ~first
        keep[name] = torch.from_numpy(np.ascontiguousarray(wins.T >= 2))
    return keep


def by_partition(scores: Scores, within: Mask | None) -> Mapping[str, Tensor]:
    """What a user writes by hand: concatenate, partition, compare; of equal scores, too many or too few may go."""
    row = np.concatenate([score.float().numpy().reshape(-1) for score in scores.values()])
    rank = round(SPARSITY * row.size)
    row.partition(rank)
    return {name: torch.from_numpy(score.float().numpy() >= row[rank]) for name, score in scores.items()}


def by_global_unstructured(scores: Scores, within: Mask | None) -> Mapping[str, Tensor]:
    modules = [nn.Module() for _ in scores]
    for module, score in zip(modules, scores.values(), strict=True):
        module.weight = nn.Parameter(score)
    global_unstructured([(module, "weight") for module in modules], L1Unstructured, amount=SPARSITY)
    return {name: module.get_buffer("weight_mask") for name, module in zip(scores, modules, strict=True)}


OURS: dict[str, Callable[[Scores, Mask | None], Mapping[str, Tensor]]] = {
    "prune()": by_prune,
    "prune(within=...), half dead": by_prune_within,
    "numpy.partition and >=": by_partition,
    "prune(scope=n_of_m(2, 4))": by_prune_2_of_4,
    "2 of 4, six comparisons": by_six_comparisons,
}
TORCH = {"torch global_unstructured": by_global_unstructured}


def measure(names: list[str], weights: int, tensors: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Return name -> CPU seconds of every repeat, extra bytes of the first, and how many weights the mask removes."""
    torch.set_num_threads(1)
    scores = make_scores(weights, tensors, dtype)
    within = half_dead(scores)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    extra, removed = {}, {}
    for name in names:  # the first call of each loads code, which is no memory of a selection
        (OURS | TORCH)[name](small := make_scores(1000, 2, dtype), half_dead(small))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(repeats):
        for name in names:
            spent, mask = timed(lambda name=name: (OURS | TORCH)[name](scores, within))
            seconds[name].append(spent)
            extra.setdefault(name, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
            kept = sum(int(np.count_nonzero(entry.numpy())) for entry in mask.values())
            removed[name] = sum(score.numel() for score in scores.values()) - kept
    total = sum(score.numel() for score in scores.values())
    return {name: (seconds[name], extra[name], removed[name], total) for name in names}


def alone(*arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(measure, arguments)


def rows_of(names: list[str], weights: int, tensors: int, dtype: torch.dtype, repeats: int) -> list[list[str]]:
    times, found = alone(names, weights, tensors, dtype, repeats), []
    for name in names:
        seconds, _, removed, total = times[name]
        _, extra, *_ = alone([name], weights, tensors, dtype, 1)[name]
        share = 0.5 if "4" in name else SPARSITY
        found.append(
            [
                name, str(dtype)[6:], f"{total:,}", str(tensors), f"{min(seconds) / total * 1e9:.2f}",
                f"{statistics.median(seconds) / total * 1e9:.2f}", f"{extra / total:.2f}",
                "yes" if removed == round(share * total) else f"{removed - round(share * total):+,}",
            ]
        )  # fmt: skip
    return found


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of float32 scores, under ``HEADER``; quick ones are of a million."""
    sizes, repeats = ([(1_000_000, 20)], 2) if quick else ([(10_000_000, 20), (10_000_000, 150), (100_000_000, 20)], 5)
    found = [row for size in sizes for row in rows_of(list(OURS), *size, torch.float32, repeats)]
    return found + rows_of(list(TORCH), 1_000_000, 20, torch.float32, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="+", default=[10_000_000, 100_000_000])
    parser.add_argument("--tensors", type=int, nargs="+", default=[20, 150])
    parser.add_argument("--torch-weights", type=int, default=10_000_000, help="for the row of torch; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    found = []
    for weights in arguments.weights:
        for tensors in arguments.tensors:
            for dtype in (torch.float32, torch.bfloat16):
                found += rows_of(list(OURS), weights, tensors, dtype, arguments.repeats)
    if arguments.torch_weights:
        found += rows_of(list(TORCH), arguments.torch_weights, arguments.tensors[0], torch.float32, arguments.repeats)
    print(f"sparsity {SPARSITY}, 1 thread, process CPU time, {arguments.repeats} repeats that take turns\n")
    print(markdown_table(HEADER, found))


if __name__ == "__main__":
    main()
