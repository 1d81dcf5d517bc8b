"""Time the input norms that wanda needs, and all evidence, over a forward pass of the same batch.

    OMP_NUM_THREADS=1 python recipes/benchmarks/evidence.py

The networks are of the sizes that people have. Input norms need no backward pass; gradients do. It uses one thread and
measures the CPU time of the process; ways take turns, and ratios are of one round. Spreads: least / first quartile /
median / largest.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
import transformers
from timing import ratios, show, spread, take_turns
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from hf_lottery import gather_evidence, prunable

HEADER = [
    "network",
    "forward, ms",
    "input norms, x forward (goal <= 1.15)",
    "forward and backward, x",
    "all evidence, x",
]
SMALL: Any = {"layer_type": "basic", "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
NETWORKS = {
    "ResNet-18, 16 images of 64 x 64": (lambda: ResNetForImageClassification(ResNetConfig(**SMALL)), (16, 3, 64, 64)),
    "ResNet-50, 2 images of 224 x 224": (lambda: ResNetForImageClassification(ResNetConfig()), (2, 3, 224, 224)),
    "BERT-base, 4 x 64 tokens": (lambda: BertForSequenceClassification(BertConfig()), (4, 64)),
}


def measure(network: str, rounds: int) -> list[str]:
    """Measure one row."""
    make, shape = NETWORKS[network]
    torch.manual_seed(0)
    model, labels = make().eval(), torch.zeros(shape[0], dtype=torch.long)
    images = len(shape) > 2
    inputs = {"pixel_values": torch.randn(shape)} if images else {"input_ids": torch.randint(1000, shape)}
    weights = prunable(model)

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch, labels=labels).loss

    def backward() -> None:
        model.zero_grad()
        loss(model, inputs).backward()

    ways = {
        "forward": torch.no_grad()(lambda: loss(model, inputs)),
        "norms": lambda: gather_evidence(model, [inputs], loss, within=weights, fields=["input_norm"]),
        "backward": backward,
        "all": lambda: gather_evidence(model, [inputs], loss, within=weights),
    }
    seconds = take_turns(ways, rounds)
    forward = seconds.pop("forward")
    cells = [spread(ratios(spent, forward), 2) for spent in seconds.values()]
    return [network, f"{1e3 * statistics.median(forward):.0f}", *cells]


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of all networks, under ``HEADER``; quick ones are of one network and few rounds."""
    transformers.logging.set_verbosity_error()
    return [measure(network, 2 if quick else 7) for network in [*NETWORKS][: 1 if quick else None]]


if __name__ == "__main__":
    show(__doc__, HEADER, rows, quick="one network, two rounds")
