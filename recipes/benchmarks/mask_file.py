"""Measure size and speed of mask files: a magnitude mask of 24 million weights, and a series of ten levels.

    python recipes/benchmarks/mask_file.py
    python recipes/benchmarks/mask_file.py --zstd-levels 3,16,19   # what another level would give

It uses one thread and reports the least CPU time of the repeats. A 784-4096-4096-1024-10 network is trained on
Fashion-MNIST for a few hundred steps: it is not meant to be accurate, but its layers get the densities of trained ones.
The bound of a size is the entropy of each layer's density, which is what an ideal code of independent weights needs.
Reading means from folder to ``Mask``, with the checksum and all checks.
"""

import argparse
import itertools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import zstandard
from timing import timed
from torch import nn

from hf_lottery import Mask, magnitude, prunable, prune, score_weights
from hf_lottery.hf.tasks.built_in import fashion_mnist
from hf_lottery.masks.file import MASK_NAME, write_mask
from hf_lottery.masks.mask_series import MaskSeries
from hf_lottery.report import markdown_table
from hf_lottery.storage.encoding import pack_bits

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
HEADER = ["sparsity", "encoding", "bytes", "bits per weight", "size / bound", "write ns/weight", "read ns/weight"]
SPARSITIES = (0.8, 0.9, 0.95)
LEVELS = 10
STEP = 0.2
T = TypeVar("T")


def network() -> nn.Module:
    """Make the network; its layers have different densities from the start, as their weights have different scales."""
    torch.manual_seed(0)
    sizes = (784, 4096, 4096, 1024, 10)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def train(folder: str, steps: int, batch: int = 128) -> nn.Module:
    """Train the network for a short time, and print its training accuracy."""
    (images, labels, _, _), _ = fashion_mnist(folder)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    right = 0
    for step, rows in enumerate(torch.randperm(len(images))[: steps * batch].split(batch)):
        optimizer.zero_grad()
        logits = model(images[rows])
        nn.functional.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()
        right += int((logits.argmax(1) == labels[rows]).sum()) if step >= steps // 2 else 0
    weights = sum(weight.numel() for weight in prunable(model).values())
    accuracy = right / batch / (steps - steps // 2)
    print(f"{weights:,} weights, {steps} steps of {batch}, training accuracy of the second half {accuracy:.3f}\n")
    return model


def bound(mask: Mask) -> float:
    """Return the bytes that the entropy of each layer's density needs."""
    bits = 0.0
    for entry in mask.values():
        share = int(entry.sum()) / entry.numel()
        bits -= entry.numel() * sum(part * math.log2(part) for part in (share, 1 - share) if part)
    return bits / 8


def least_time(run: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Return the least CPU seconds of the repeats, and the result of the last one."""
    run()
    spent = [timed(run) for _ in range(repeats)]
    return min(seconds for seconds, _ in spent), spent[-1][1]


def mask_row(mask: Mask, sparsity: float, compress: bool, repeats: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        write, _ = least_time(lambda: write_mask(folder, mask, compress=compress), 1 if compress else repeats)
        read, loaded = least_time(lambda: Mask.from_pretrained(folder), repeats)
        size = (Path(folder) / MASK_NAME).stat().st_size
    assert loaded == mask
    numbers = (size / mask.weights * 8, size / bound(mask), 1e9 * write / mask.weights, 1e9 * read / mask.weights)
    texts = [f"{number:.{digits}f}" for number, digits in zip(numbers, (3, 3, 2, 2), strict=True)]
    return [f"{sparsity:.0%}", "zstd" if compress else "bits", f"{size:,}", *texts]


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of masks of the network before training, under ``HEADER``; quick ones are of one sparsity."""
    scores = score_weights(prunable(network()), magnitude)
    masks = {sparsity: prune(scores, sparsity) for sparsity in SPARSITIES[: 1 if quick else None]}
    cases = [(sparsity, compress) for sparsity in masks for compress in (False, True)]
    return [mask_row(masks[sparsity], sparsity, compress, 1 if quick else 3) for sparsity, compress in cases]


def series_rows(masks: list[Mask], repeats: int) -> None:
    make, series = least_time(lambda: MaskSeries(masks), 1)
    weights = masks[0].weights
    with tempfile.TemporaryDirectory() as folder:
        write, _ = least_time(lambda: series.save_pretrained(folder), 1)
        read, loaded = least_time(lambda: MaskSeries.from_pretrained(folder), repeats)
        size = (Path(folder) / MASK_NAME).stat().st_size
        levels = [least_time(lambda k=k: Mask.from_pretrained(folder, level=k), repeats) for k in range(len(masks))]
    assert loaded == series and all(mask == masks[k] for k, (_, mask) in enumerate(levels))
    alone, last = sum(bound(mask) for mask in masks), masks[-1].sparsity
    print(f"\nseries: dense, then {LEVELS} levels that each remove {STEP:.0%} of what is left, to {last:.1%}")
    print(f"- {size:,} bytes, {8 * size / weights:.3f} bits per weight in all;", end=" ")
    print(f"{8 * alone / weights:.3f} is the bound of independent files")
    times = {"make": make, "write": write, "read all levels, packed": read, "read level 1": levels[1][0]}
    for what, seconds in {**times, f"read level {LEVELS}": levels[-1][0]}.items():
        print(f"- {what}: {1e9 * seconds / weights:.2f} ns per weight")


def zstd_rows(mask: Mask, sparsity: float, levels: list[int]) -> None:
    packed = [pack_bits(entry).numpy().tobytes() for entry in mask.values()]
    for level in levels:
        code = zstandard.ZstdCompressor(level=level)
        seconds, frames = least_time(lambda code=code: [code.compress(data) for data in packed], 1)
        size = sum(map(len, frames))
        print(f"| {sparsity:.0%} | {level} | {size / bound(mask):.3f} | {1e9 * seconds / mask.weights:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", default=FASHION_MNIST)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--zstd-levels", default="", help="comma-separated levels to compare")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    scores = score_weights(prunable(train(arguments.dataset_dir, arguments.steps)), magnitude)
    masks = {sparsity: prune(scores, sparsity) for sparsity in SPARSITIES}
    for sparsity, mask in masks.items():
        print(f"- densities at {sparsity:.0%}:", ", ".join(f"{1 - s:.3f}" for s in mask.layer_sparsities().values()))
    cases = [(sparsity, compress) for sparsity in masks for compress in (False, True)]
    found = [mask_row(masks[sparsity], sparsity, compress, arguments.repeats) for sparsity, compress in cases]
    print("\n" + markdown_table(HEADER, found))
    series_rows([prune(scores, 1 - (1 - STEP) ** level) for level in range(LEVELS + 1)], arguments.repeats)
    if arguments.zstd_levels:
        print("\n| sparsity | zstd level | size / bound | encode ns/weight |\n|---|---|---|---|")
        for sparsity, mask in masks.items():
            zstd_rows(mask, sparsity, [int(level) for level in arguments.zstd_levels.split(",")])


if __name__ == "__main__":
    main()
