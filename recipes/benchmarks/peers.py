"""Time our functions beside those of packages on PyPI that do the same: torch-pruning, rebasin and torch itself.

    OMP_NUM_THREADS=1 python recipes/benchmarks/peers.py

Peers are optional: ``pip install torch-pruning rebasin torchview``. A row says "not installed" without them. It uses
one thread and measures the CPU time of the process; ours and the peer's take turns, on copies where they write to a
network.
``prune()`` beside numpy and torch is in ``global_prune.py``, and training steps are in ``masked_step.py``.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from timing import show, take_turns
from torch import nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from hf_lottery import discover, magnitude, permute_, prunable, prune, score_weights, weight_matching

HEADER = ["what", "peer", "ours, ms, least", "median", "peer, ms, least", "median", "peer / ours"]
Ways = tuple[Callable[[], Any], Callable[[], Any]]


class Network(nn.Sequential):
    """A plain convolutional network, which every peer can read."""

    def __init__(self, width: int):
        sizes = (3, width, width, 2 * width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))


def pruning(width: int) -> Ways:
    """Prune a network to 80 %, from model to masked model."""
    model = Network(width)

    def ours() -> None:
        mine = copy.deepcopy(model)
        prune(score_weights(prunable(mine), magnitude), 0.8).apply_(mine)

    def peer() -> None:
        theirs = copy.deepcopy(model)
        layers = [module for module in theirs.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        global_unstructured([(layer, "weight") for layer in layers], L1Unstructured, amount=0.8)

    return ours, peer


def dependencies(width: int) -> Ways:
    """Find which axes of a network belong together; ours also proves it."""
    torch_pruning: Any = importlib.import_module("torch_pruning")
    model, images = Network(width).eval(), torch.randn(2, 3, 32, 32)
    return (
        lambda: discover(model, (images,)),
        lambda: torch_pruning.DependencyGraph().build_dependency(model, example_inputs=images),
    )


def matching(width: int) -> Ways:
    """Match the weights of two networks, from models to permuted model."""
    rebasin: Any = importlib.import_module("rebasin")
    a, b, images = Network(width).eval(), Network(width).eval(), torch.randn(2, 3, 32, 32)

    def ours() -> None:
        spec, source = discover(a, (images,)), copy.deepcopy(b)
        permute_(source, weight_matching(spec, source=source, target=a).permutation)

    def peer() -> None:
        rebasin.PermutationCoordinateDescent(a, copy.deepcopy(b), input_data_b=images).rebasin()

    return ours, peer


# What -> the peer, and what makes both ways.
CASES: dict[str, tuple[str, Callable[[int], Ways]]] = {
    "prune to 80 %, model to masked model": ("torch.nn.utils.prune", pruning),
    "groups of axes: discover with proof, DependencyGraph": ("torch-pruning", dependencies),
    "discover and match weights": ("rebasin", matching),
}


def measure(what: str, width: int, rounds: int) -> list[str]:
    """Measure one row."""
    peer, make = CASES[what]
    torch.manual_seed(0)
    try:
        ways = make(width)
    except ImportError as error:
        return [what, peer, f"not installed: {error.name}", *["-"] * 4]
    ours, theirs = take_turns(dict(zip(("ours", "peer"), ways, strict=True)), rounds).values()
    times = [1e3 * reduce(seconds) for seconds in (ours, theirs) for reduce in (min, statistics.median)]
    return [what, peer, *(f"{time:.1f}" for time in times), f"{times[3] / times[1]:.1f}"]


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of all peers, under ``HEADER``; quick ones are of a narrow network and few rounds."""
    return [measure(what, 8 if quick else 64, 2 if quick else 7) for what in CASES]


if __name__ == "__main__":
    show(__doc__, HEADER, rows, quick="a narrow network, two rounds")
