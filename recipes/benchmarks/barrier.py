"""Measure what a barrier costs: its points against as many evaluations, interpolation alone, and recalibration.

    OMP_NUM_THREADS=1 python recipes/benchmarks/barrier.py

It uses a ResNet-20 (width 1, 28x28 inputs), a 4-layer ViT and one thread, and measures the CPU time of the process.
Barriers and bare evaluations take turns; a ratio compares two neighbours. "Again" compares bare evaluations with
themselves and shows the noise. Spreads: least / first quartile / median / largest.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from timing import cpu_seconds, spread
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_lottery import error_barrier, recalibrated
from hf_lottery.connectivity.interpolation import holding
from hf_lottery.connectivity.repair import recalibrate_batch_norm_
from hf_lottery.hf.tasks.paper_networks import ResNetCifarConfig, ResNetCifarForImageClassification
from hf_lottery.report import markdown_table

POINTS, BATCH = 11, 100
HEADER = [
    "network", "weights", "evaluation, ms", "moving to a point, ms", "x evaluation, summed", "x evaluations, whole",
    "again", "with recalibration on half, whole",
]  # fmt: skip


def networks() -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """Return name -> network and its channels."""
    resnet = ResNetCifarConfig(num_channels=1, image_size=28, id2label=dict(enumerate("0123456789")))
    vit = ViTConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, image_size=28, patch_size=4,
        num_channels=1,
    )  # fmt: skip
    return {
        "ResNet-20": (lambda: ResNetCifarForImageClassification(resnet), 1),
        "ViT, 4 layers of 128": (lambda: ViTForImageClassification(vit), 1),
    }


def measure(name: str, images: int, repeats: int) -> list[str]:
    """Measure one row: a bare evaluation, moving to a point, and the ratios of whole barriers to bare evaluations."""
    make, channels = networks()[name]
    a, b = make().eval(), make().eval()
    batches = torch.randn(images, channels, 28, 28).split(BATCH)
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in a.modules())
    sample = list(batches[: max(1, len(batches) // 2)])

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        return sum(model(batch).logits.argmax(-1).eq(0).sum().item() for batch in batches) / images

    def repair(model: nn.Module, alpha: float) -> None:
        if has_norms:
            recalibrate_batch_norm_(model, sample)

    def bare(recalibrate: bool = False) -> None:
        for _ in range(POINTS):
            if recalibrate:
                repair(a, 0.0)
            evaluate(a)

    plain, with_repair, noise, floors = [], [], [], []
    bare()
    for _ in range(repeats):
        floor = cpu_seconds(bare)
        plain.append(cpu_seconds(lambda: error_barrier(a, b, evaluate, points=POINTS)) / floor)
        again = cpu_seconds(bare)
        noise.append(again / floor)
        floors.append(again)
        if has_norms:
            whole = cpu_seconds(lambda: error_barrier(a, b, evaluate, points=POINTS, repair=recalibrated(sample)))
            with_repair.append(whole / cpu_seconds(lambda: bare(True)))
    size = sum(tensor.numel() for tensor in a.parameters())
    one, moved = statistics.median(floors) / POINTS, move_seconds(a, b)
    return [
        name, f"{size:,}", f"{one * 1e3:.0f}", f"{moved * 1e3:.3f}", f"{1 + moved / one:.4f}", spread(plain),
        spread(noise),
        spread(with_repair) if has_norms else "-",
    ]  # fmt: skip


def move_seconds(a: nn.Module, b: nn.Module) -> float:
    """Measure the median CPU time of moving to one point."""
    with holding(a, b) as held:
        return statistics.median(cpu_seconds(lambda: held.to_line(0.3)) for _ in range(50))


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of both networks, under ``HEADER``; quick ones are of few images."""
    return [measure(name, 20 if quick else 300, 2 if quick else 3) for name in networks()]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(markdown_table(HEADER, [measure(name, args.images, args.repeats) for name in networks()]))


if __name__ == "__main__":
    main()
