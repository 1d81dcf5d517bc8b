"""Measure what matching costs: in forward passes, against matching layer after layer, and the assignment alone.

    OMP_NUM_THREADS=1 python recipes/benchmarks/matching.py

It uses a ResNet-20 (width 1, 28x28 inputs), a 4-layer BERT and one thread, and reports the median CPU time of the
process. "Layer after layer" works as the code of the alignment paper does, with one pass over the data of both networks
for every group; here it is our own matching, group by group.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from timing import cpu_seconds
from transformers import BertConfig, BertForSequenceClassification

from hf_lottery import activation_matching, discover, weight_matching
from hf_lottery.alignment.assignment import assign
from hf_lottery.hf.tasks.paper_networks import ResNetCifarConfig, ResNetCifarForImageClassification
from hf_lottery.report import markdown_table

HEADER = ["networks", "groups", "both forwards, s", "activations, s", "layer after layer, s", "weights, s"]


def median_seconds(action: Callable[[], Any], repeats: int) -> float:
    """Measure the median CPU time of the process."""
    return statistics.median(cpu_seconds(action) for _ in range(repeats))


def pairs() -> dict[str, tuple[Callable[[], torch.nn.Module], dict[str, torch.Tensor]]]:
    """Return name -> network and a batch."""
    resnet = ResNetCifarConfig(num_channels=1, image_size=28, id2label=dict(enumerate("0123456789")))
    bert = BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, vocab_size=1000
    )
    return {
        "ResNet-20": (lambda: ResNetCifarForImageClassification(resnet), {"pixel_values": torch.randn(100, 1, 28, 28)}),
        "BERT, 4 layers": (
            lambda: BertForSequenceClassification(bert),
            {"input_ids": torch.randint(1000, (16, 64)), "attention_mask": torch.ones(16, 64, dtype=torch.long)},
        ),
    }


def measure(name: str, repeats: int) -> list[str]:
    """Measure one row: forward of both networks, activation matching, layer after layer, weight matching."""
    make, batch = pairs()[name]
    a, b = make().eval(), make().eval()
    spec = discover(a, batch)

    @torch.no_grad()
    def forwards() -> None:
        a(**batch)
        b(**batch)

    floor = median_seconds(forwards, repeats)
    whole = median_seconds(lambda: activation_matching(spec, source=a, target=b, batches=[batch]), repeats)
    groups = list(spec.free)
    parts = median_seconds(
        lambda: [activation_matching(spec, source=a, target=b, batches=[batch], include=[g]) for g in groups], 1
    )
    weights = median_seconds(lambda: weight_matching(spec, source=a, target=b), repeats)
    return [name, str(len(groups)), f"{floor:.3f}", f"{whole:.3f} ({whole / floor:.2f} x)",
            f"{parts:.3f} ({parts / whole:.1f} x ours)", f"{weights:.3f}"]  # fmt: skip


def assignment(n: int, repeats: int) -> list[str]:
    """Measure one row: scipy, plain and reduced, on correlations of two layers of ReLU units over eight factors."""
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((4000, 8))
    layers = [np.maximum(factors @ generator.standard_normal((8, n)) + generator.standard_normal((4000, n)), 0)
              for _ in range(2)]  # fmt: skip
    x, y = ((layer - layer.mean(0)) / layer.std(0) for layer in layers)
    cost = -(x.T @ y) / len(x)
    plain = median_seconds(lambda: linear_sum_assignment(cost), repeats)
    reduced = median_seconds(lambda: assign(-cost), repeats)
    return [str(n), f"{plain:.3f}", f"{reduced:.3f}", f"{plain / reduced:.2f}"]


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of both pairs, under ``HEADER``; quick ones are of one pair."""
    return [measure(name, 1 if quick else 5) for name in [*pairs()][: 1 if quick else None]]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(markdown_table(HEADER, [measure(name, args.repeats) for name in pairs()]))
    print()
    found = [assignment(n, args.repeats) for n in (512, 1024, 2048)]
    print(markdown_table(["n", "scipy, s", "reduced first, s", "ratio"], found))


if __name__ == "__main__":
    main()
