"""Time the exact global selection against torch.nn.utils.prune.global_unstructured, and check that counts are exact.

    python recipes/benchmarks/global_prune.py --repeats 9
    python recipes/benchmarks/global_prune.py --torch-weights 100_000_000 --repeats 1   # 6 GB

It uses one thread and measures the CPU time of the process, which other processes disturb little. Extra memory is what
one run adds to the peak resident set (ru_maxrss) of a process that holds the scores; every row has a process of its
own.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from hf_lottery.pruning.selection import find_threshold, keep_above

TENSORS = 20
SPARSITY = 0.8


def make_scores(weights: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [weights // TENSORS + (index < weights % TENSORS) for index in range(TENSORS)]
    return {f"w{i:02}": torch.randn(size, generator=generator, dtype=dtype).abs_() for i, size in enumerate(sizes)}


def threshold_alone(scores: dict[str, Tensor]) -> Callable[[], int]:
    """Run once and return a function that counts what goes; the counting is not timed."""
    threshold = find_threshold(scores, round(SPARSITY * sum(score.numel() for score in scores.values())))
    return lambda: sum(int((score < threshold.score).sum()) for score in scores.values()) + threshold.ties


def threshold_and_masks(scores: dict[str, Tensor]) -> Callable[[], int]:
    keep = keep_above(scores, find_threshold(scores, round(SPARSITY * sum(s.numel() for s in scores.values()))))
    return lambda: sum(entry.numel() - int(entry.sum()) for entry in keep.values())


def torch_global_unstructured(scores: dict[str, Tensor]) -> Callable[[], int]:
    modules = [nn.Module() for _ in scores]
    for module, score in zip(modules, scores.values(), strict=True):
        module.weight = nn.Parameter(score)
    global_unstructured([(module, "weight") for module in modules], L1Unstructured, amount=SPARSITY)
    masks = [module.get_buffer("weight_mask") for module in modules]
    return lambda: sum(mask.numel() - int(mask.sum(dtype=torch.int64)) for mask in masks)


def measure(run: Callable[[dict[str, Tensor]], Callable[[], int]], weights: int, dtype: torch.dtype, repeats: int):
    """CPU seconds of every repeat, extra peak bytes of the first, and how many weights every repeat removed."""
    torch.set_num_threads(1)
    scores = make_scores(weights, dtype)
    before, seconds, extra, counts = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [], 0, set()
    for _ in range(repeats):
        start = time.process_time()
        count = run(scores)
        seconds.append(time.process_time() - start)
        extra = extra or 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        counts.add(count())
    return seconds, extra, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=100_000_000, help="for the rows of hf_lottery")
    parser.add_argument("--torch-weights", type=int, default=10_000_000, help="for the comparison, of both")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--skip-torch", action="store_true")
    arguments = parser.parse_args()

    rows = [(run, arguments.weights) for run in (threshold_alone, threshold_and_masks)]
    if not arguments.skip_torch:
        comparison = (threshold_alone, threshold_and_masks, torch_global_unstructured)
        rows += [(run, arguments.torch_weights) for run in comparison if (run, arguments.torch_weights) not in rows]
    print(f"{TENSORS} tensors, sparsity {SPARSITY}, 1 thread, process CPU time, {arguments.repeats} repeats\n")
    print("| what | dtype | weights | min s | median s | ns per weight | extra bytes per weight | removed, exact |")
    print("|---|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for run, weights in rows:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                seconds, extra, counts = process.apply(measure, (run, weights, dtype, arguments.repeats))
            median, exact = statistics.median(seconds), counts == {round(SPARSITY * weights)}
            print(
                f"| {run.__name__} | {str(dtype)[6:]} | {weights:,} | {min(seconds):.3f} | {median:.3f} "
                f"| {median / weights * 1e9:.2f} | {extra / weights:.2f} "
                f"| {', '.join(map(str, counts))}: {'yes' if exact else 'NO'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
