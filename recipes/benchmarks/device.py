"""Time what can run on an accelerator, on the one that is here or else on the CPU, and say which it was.

    python recipes/benchmarks/device.py                          # CUDA if there is one
    python recipes/benchmarks/device.py --device cpu             # the same on the CPU, to compare
    python recipes/benchmarks/device.py --layers 4 --seconds 5   # less to compile; a few minutes at most on a GPU
    python recipes/benchmarks/device.py --only pruning matching

Pruning, masked steps (float and packed masks, in mixed precision, compiled), activation matching, the proof of
``discover``, and their memory. Time is the wall time of a synchronised call on an accelerator, and CPU time of the
process on a CPU; ways of a kind take turns. Memory is the peak of the allocator beyond what was there before; a CPU has
no such figure. The table of a kind is printed as soon as it is measured. A kind that fails is reported, the others go
on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from masked_step import TRANSFORMER
from timing import cpu_seconds
from torch import nn, optim
from transformers import BertConfig, BertForSequenceClassification

from hf_lottery import activation_matching, discover, keep_sparse, magnitude, prunable, prune, score_weights
from hf_lottery.report import markdown_table

HEADER = ["what", "device", "calls", "least, ms", "median, ms", "x first of its kind", "peak MB"]
SPARSITY = 0.8
FEWEST, MOST = 2, 50  # measured calls of a way
Ways = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        quick: Whether networks and batches are small, and nothing is compiled.
        layers: Layers of BERT-base.
        seconds: Rounds of a kind go on for this long, beyond the first ones.
    """

    quick: bool = False
    layers: int = 12
    seconds: float = 10


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
    torch.accelerator.synchronize(device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    start = time.perf_counter()
    action()
    torch.accelerator.synchronize(device)
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated(device) - before if cuda else None


def network(device: torch.device, size: Size) -> nn.Module:
    sizes: Any = {"num_hidden_layers": size.layers}
    if size.quick:
        sizes = {**TRANSFORMER, "hidden_size": 64, "intermediate_size": 256}
    # A type that is named is not set by the first step, after which all would be compiled anew.
    model: Any = BertForSequenceClassification(BertConfig(**sizes, problem_type="single_label_classification"))
    return model.to(device)


def batch(device: torch.device, size: Size) -> dict[str, torch.Tensor]:
    tokens = torch.randint(1000, (2, 16) if size.quick else (8, 128), device=device)
    return {"input_ids": tokens, "labels": torch.zeros(len(tokens), dtype=torch.long, device=device)}


def step(model: nn.Module, optimizer: optim.Optimizer, inputs: dict[str, torch.Tensor], half: bool) -> None:
    with torch.autocast(inputs["labels"].device.type, torch.bfloat16, enabled=half):
        loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()  # here, so that the memory of gradients is no part of what was there before


def steps(device: torch.device, size: Size, *, half: bool, compiled: bool) -> Ways:
    """Training steps of one network: dense, with a mask as numbers and as bits."""
    torch.manual_seed(0)
    start, inputs = network(device, size), batch(device, size)
    ways: Ways = {}
    mask = prune(score_weights(prunable(start), magnitude), SPARSITY)
    for held in ("dense", "mask as numbers", "mask as bits"):
        model = copy.deepcopy(start).train()
        optimizer = optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        if held != "dense":
            keep_sparse(model, mask, optimizer, packed="bits" in held)
        run: Any = torch.compile(model) if compiled else model
        name = f"step, {held}{', bfloat16' * half}{', compiled' * compiled}"
        ways[name] = partial(step, run, optimizer, inputs, half)
    return ways


def pruning(device: torch.device, size: Size) -> Ways:
    """Pruning of scores that are on the device, against the same ones that are fetched first."""
    torch.manual_seed(0)
    scores = {f"w{i:02}": torch.rand(500 if size.quick else 500_000, 10, device=device) for i in range(20)}
    mask = prune(scores, 0.5)

    def fetched() -> None:
        prune({name: score.cpu() for name, score in scores.items()}, SPARSITY)

    return {
        "prune()": lambda: prune(scores, SPARSITY),
        "prune() of fetched scores": fetched,
        "prune(within=...)": lambda: prune(scores, SPARSITY, within=mask),
    }


def matching(device: torch.device, size: Size) -> Ways:
    """Forward passes, discover without and with its proof, and activation matching."""
    torch.manual_seed(0)
    a, b = (network(device, size).eval() for _ in "ab")
    inputs = {"input_ids": batch(device, size)["input_ids"]}
    spec = discover(a, inputs)

    @torch.no_grad()
    def forwards() -> None:
        a(**inputs)
        b(**inputs)

    def matched() -> None:
        with warnings.catch_warnings():  # networks that share nothing match no better than chance
            warnings.simplefilter("ignore")
            activation_matching(spec, source=a, target=b, batches=[inputs])

    return {
        "forward passes of two networks": forwards,
        "activation matching": matched,
        "discover, proof later": lambda: discover(a, inputs, proof="later"),
        "discover with proof": lambda: discover(a, inputs),
    }


# Name -> ways; what is compiled stands last, as it takes longest.
KINDS: dict[str, Callable[[torch.device, Size], Ways]] = {
    "pruning": pruning,
    "steps": partial(steps, half=False, compiled=False),
    "half_steps": partial(steps, half=True, compiled=False),
    "matching": matching,
    "compiled_half_steps": partial(steps, half=True, compiled=True),
    "compiled_steps": partial(steps, half=False, compiled=True),
}
COMPILED = ("compiled_half_steps", "compiled_steps")


def measure(kind: str, device: torch.device, size: Size) -> list[list[str]]:
    """Measure one kind on one device; the rows are under ``HEADER``."""
    ways, name = KINDS[kind](device, size), device_name(device)
    for way in ways.values():  # this warms up, and compiles
        way()
    spent: dict[str, list[tuple[float, int | None]]] = {what: [] for what in ways}
    end = time.perf_counter() + (0 if size.quick else size.seconds)
    for done in range(MOST):
        if done >= FEWEST and time.perf_counter() > end:
            break
        for what, way in ways.items():
            spent[what].append(seconds_and_bytes(way, device))
    found, first = [], None
    for what, pairs in spent.items():
        seconds, memory = zip(*pairs, strict=True)
        middle = statistics.median(seconds)
        first = first or middle
        peak = "-" if memory[0] is None else f"{max(memory) / 1e6:.0f}"
        times = [f"{1e3 * value:.2f}" for value in (min(seconds), middle)]
        found.append([what, name, str(len(pairs)), *times, f"{middle / first:.2f}", peak])
    return found


def free() -> None:
    """Free what a kind has left: its networks, and what was compiled of them."""
    torch.compiler.reset()
    gc.collect()


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of the best device, under ``HEADER``; quick ones are of small sizes, and not compiled."""
    found = []
    for kind in KINDS:
        if not (quick and kind in COMPILED):
            found += measure(kind, best_device(), Size(quick))
            free()
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=best_device())
    parser.add_argument("--only", nargs="+", choices=KINDS, help="kinds to measure; default: all")
    parser.add_argument("--layers", type=int, default=Size.layers, help="layers of BERT-base; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=Size.seconds, help="how long a kind is repeated; default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing compiled unless named")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(args.quick, args.layers, args.seconds)
    failed = []
    for kind in args.only or [kind for kind in KINDS if not (args.quick and kind in COMPILED)]:
        start = time.perf_counter()
        try:
            print(markdown_table(HEADER, measure(kind, args.device, size)))
        except Exception:  # whatever it is, the other kinds go on
            failed.append(kind)
            traceback.print_exc()
        free()
        print(f"\n({kind}: {time.perf_counter() - start:.0f} s)\n", flush=True)
    if failed:
        sys.exit(f"{len(failed)} kinds failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
