"""Measure weight matching: beside the plain published way, and on networks of real sizes.

    OMP_NUM_THREADS=1 python recipes/benchmarks/weights.py

The pair that both ways match is two ResNet-20 of width 1 that it trains on scikit-learn's digits. The plain way is
given arrays; ours is called with models, and checks them. ResNet-50 has random weights; its partner is itself,
permuted, with 30 % noise. The two BERT-base are of different seeds. It uses one thread and measures the CPU time of the
process.
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from plain_matching import axes_of, permuted, plain_weight_matching
from sklearn.datasets import load_digits
from timing import show, take_turns
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from hf_lottery import Permutation, PermutationSpec, discover, permute_, weight_matching
from hf_lottery.alignment import MatchReport
from hf_lottery.hf.tasks.paper_networks import ResNetCifarConfig, ResNetCifarForImageClassification

HEADER = ["pair", "way", "CPU, s, least", "median", "objective", "units recovered"]
Pair = tuple[nn.Module, nn.Module, PermutationSpec]


def trained_pair(epochs: int) -> Pair:
    """Train two ResNet-20 on digits, from different seeds."""
    data: Any = load_digits()
    images = F.interpolate(torch.tensor(data.images / 16 - 0.3, dtype=torch.float32)[:, None], scale_factor=2)
    labels = torch.tensor(data.target)
    config = ResNetCifarConfig(num_channels=1, image_size=16, id2label=dict(enumerate("0123456789")))
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = ResNetCifarForImageClassification(config)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        for _ in range(epochs):
            for rows in torch.randperm(len(labels)).split(100):
                optimizer.zero_grad()
                model(pixel_values=images[rows], labels=labels[rows]).loss.backward()
                optimizer.step()
        networks.append(model.eval())
    return networks[0], networks[1], discover(networks[0], {"pixel_values": images[:4]})


@torch.no_grad()
def planted_pair(noise: float = 0.3) -> tuple[Pair, Permutation]:
    """Permute a ResNet-50, and add noise relative to the deviation of each weight."""
    torch.manual_seed(0)
    source = ResNetForImageClassification(ResNetConfig(id2label={n: str(n) for n in range(1000)})).eval()
    spec = discover(source, {"pixel_values": torch.randn(1, 3, 64, 64)})
    target, permutation = copy.deepcopy(source), spec.random(1)
    permute_(target, permutation)
    for parameter in target.parameters():
        parameter.add_(noise * parameter.std(correction=0) * torch.randn_like(parameter))
    return (source, target, spec), permutation


def bert_pair() -> Pair:
    """Make two BERT-base of different seeds."""
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(BertForSequenceClassification(BertConfig()).eval())
    return networks[0], networks[1], discover(networks[0], {"input_ids": torch.randint(1, 1000, (2, 8))})


def beside_the_plain_way(epochs: int, rounds: int) -> list[list[str]]:
    """Measure both ways on one pair, in turn."""
    source, target, spec = trained_pair(epochs)
    axes = axes_of(spec)
    theirs, ours = ({name: w.detach().numpy() for name, w in m.named_parameters()} for m in (source, target))

    def objective(entries: dict[str, np.ndarray]) -> float:
        return sum(
            float((ours[name] * permuted(axes[name], entries, w)).sum(dtype=float)) for name, w in theirs.items()
        )

    found = weight_matching(spec, source=source, target=target).permutation
    states: dict[str, Any] = {"source": source.state_dict(), "target": target.state_dict()}
    ways = {
        "plain, from arrays": lambda: plain_weight_matching(axes, target=ours, source=theirs),
        "ours, from models": lambda: weight_matching(spec, source=source, target=target),
        "ours, from state dicts": lambda: weight_matching(spec, **states),
        "ours, from the identity": lambda: weight_matching(spec, start=spec.identity(), **states),
    }
    paper = weight_matching(spec, start=spec.identity(), **states).permutation
    values = [plain_weight_matching(axes, target=ours, source=theirs)]
    values += [{name: p.entry(name) for name in spec.free} for p in (found, found, paper)]
    times = take_turns(ways, rounds)
    return [
        ["ResNet-20, trained", way, *_seconds(times[way]), f"{objective(entries):.1f}", "-"]
        for way, entries in zip(ways, values, strict=True)
    ]


def alone(name: str, pair: Pair, rounds: int, planted: Permutation | None = None) -> list[str]:
    """Measure our way on one pair."""
    source, target, spec = pair
    reports: list[tuple[Permutation, MatchReport]] = []

    def match() -> None:
        found = weight_matching(spec, source=source, target=target)
        reports.append((found.permutation, found.report))

    times = take_turns({"ours": match}, rounds)["ours"]
    permutation, report = reports[-1]
    shares = [(permutation.entry(group) == entry).mean() for group, entry in planted.entries.items()] if planted else []
    recovered = f"{np.mean(shares):.0%}" if planted else "-"
    return [name, "ours, from models", *_seconds(times), f"{report.objective[-1]:.1f}", recovered]


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return all rows, under ``HEADER``; quick ones are of the small pair, hardly trained."""
    found = beside_the_plain_way(1 if quick else 15, 2 if quick else 21)
    if quick:
        return found
    pair, planted = planted_pair()
    return [
        *found,
        alone("ResNet-50, planted, 30 % noise", pair, 3, planted),
        alone("BERT-base, two seeds", bert_pair(), 2),
    ]


def _seconds(times: list[float]) -> tuple[str, str]:
    return f"{min(times):.4f}", f"{statistics.median(times):.4f}"


if __name__ == "__main__":
    show(__doc__, HEADER, rows, quick="the small pair alone, hardly trained, two rounds")
