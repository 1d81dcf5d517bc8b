"""Time what can run on an accelerator, on the one that is here or else on the CPU, and say which it was.

    python recipes/benchmarks/device.py                # CUDA if there is one
    python recipes/benchmarks/device.py --device cpu   # the same on the CPU, to compare

Masked steps (float and packed masks, compiled, in mixed precision), pruning, activation matching, the proof of
``discover``, and their memory. Time is the wall time of a synchronised call on an accelerator, and CPU time of the
process on a CPU; ways of a kind take turns. Memory is the peak of the allocator beyond what was there before; a CPU has
no such figure.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from masked_step import TRANSFORMER
from timing import cpu_seconds
from torch import nn, optim
from transformers import BertConfig, BertForSequenceClassification

from hf_lottery import activation_matching, discover, keep_sparse, magnitude, prunable, prune, score_weights
from hf_lottery.report import markdown_table

HEADER = ["what", "device", "least, ms", "median, ms", "x first of its kind", "peak MB"]
SPARSITY = 0.8
Ways = dict[str, Callable[[], Any]]


def best_device() -> torch.device:
    """Return the accelerator that is here, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return a device's name for the table."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def seconds_and_bytes(action: Callable[[], Any], device: torch.device) -> tuple[float, int | None]:
    """Run once, and return its time and the peak of the memory that it added; None where that is unknown."""
    if device.type == "cpu":
        return cpu_seconds(action), None
    torch.accelerator.synchronize()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    start = time.perf_counter()
    action()
    torch.accelerator.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated(device) - before if cuda else None


def network(quick: bool, device: torch.device) -> nn.Module:
    sizes: Any = {**TRANSFORMER, "hidden_size": 64, "intermediate_size": 256} if quick else {}
    model: Any = BertForSequenceClassification(BertConfig(**sizes))
    return model.to(device)


def batch(device: torch.device, quick: bool) -> dict[str, torch.Tensor]:
    tokens = torch.randint(1000, (2, 16) if quick else (8, 128), device=device)
    return {"input_ids": tokens, "labels": torch.zeros(len(tokens), dtype=torch.long, device=device)}


def step(model: nn.Module, optimizer: optim.Optimizer, inputs: dict[str, torch.Tensor], half: bool) -> None:
    optimizer.zero_grad()
    with torch.autocast(inputs["labels"].device.type, torch.bfloat16, enabled=half):
        loss = model(**inputs).loss
    loss.backward()
    optimizer.step()


def steps(device: torch.device, quick: bool) -> Ways:
    """Training steps of one network: dense, with a mask as numbers and as bits, each compiled and in half precision."""
    torch.manual_seed(0)
    start, inputs = network(quick, device), batch(device, quick)
    ways: Ways = {}
    mask = prune(score_weights(prunable(start), magnitude), SPARSITY)
    for compiled in (False,) if quick else (False, True):
        for half in (False, True):
            for held in ("dense", "mask as numbers", "mask as bits"):
                model = copy.deepcopy(start).train()
                optimizer = optim.AdamW(model.parameters(), lr=1e-5, fused=True)
                if held != "dense":
                    keep_sparse(model, mask, optimizer, packed="bits" in held)
                run: Any = torch.compile(model) if compiled else model
                name = f"step, {held}{', compiled' * compiled}{', bfloat16' * half}"
                ways[name] = partial(step, run, optimizer, inputs, half)
    return ways


def pruning(device: torch.device, quick: bool) -> Ways:
    """Pruning of scores that are on the device, against the same ones that are fetched first."""
    scores = {f"w{i:02}": torch.rand(500 if quick else 500_000, 10, device=device) for i in range(20)}
    mask = prune(scores, 0.5)

    def fetched() -> None:
        prune({name: score.cpu() for name, score in scores.items()}, SPARSITY)

    return {
        "prune()": lambda: prune(scores, SPARSITY),
        "prune() of fetched scores": fetched,
        "prune(within=...)": lambda: prune(scores, SPARSITY, within=mask),
    }


def symmetry(device: torch.device, quick: bool) -> Ways:
    """Forward passes, discover without and with its proof, and activation matching."""
    torch.manual_seed(0)
    a, b = (network(quick, device).eval() for _ in "ab")
    inputs = {"input_ids": batch(device, quick)["input_ids"]}
    spec = discover(a, inputs)

    def forwards() -> None:
        with torch.no_grad():
            a(**inputs)
            b(**inputs)

    return {
        "forward passes of two networks": forwards,
        "activation matching": lambda: activation_matching(spec, source=a, target=b, batches=[inputs]),
        "discover, proof later": lambda: discover(a, inputs, proof="later"),
        "discover with proof": lambda: discover(a, inputs),
    }


def measure(device: torch.device, *, quick: bool) -> list[list[str]]:
    """Measure all kinds on one device; the rows are under ``HEADER``."""
    found, name = [], device_name(device)
    for kind in (steps, pruning, symmetry):
        ways = kind(device, quick)
        spent: dict[str, list[tuple[float, int | None]]] = {what: [] for what in ways}
        for _ in range(3 if quick else 6):
            for what, way in ways.items():
                spent[what].append(seconds_and_bytes(way, device))
        first = None
        for what, pairs in spent.items():
            seconds, memory = zip(*pairs[1:], strict=True)  # the first call warms up, and compiles
            middle = statistics.median(seconds)
            first = first or middle
            peak = "-" if memory[0] is None else f"{max(memory) / 1e6:.0f}"
            row = [what, name, f"{1e3 * min(seconds):.2f}", f"{1e3 * middle:.2f}", f"{middle / first:.2f}", peak]
            found.append(row)
    return found


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of the best device, under ``HEADER``; quick ones are of small sizes, and not compiled."""
    return measure(best_device(), quick=quick)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=best_device())
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing compiled")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(markdown_table(HEADER, measure(args.device, quick=args.quick)))


if __name__ == "__main__":
    main()
