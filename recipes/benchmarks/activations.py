"""Measure what activation matching costs, over one forward pass of both networks on the same batches.

    OMP_NUM_THREADS=1 python recipes/benchmarks/activations.py
    OMP_NUM_THREADS=1 python recipes/benchmarks/activations.py --networks BERT-base --batches 4

It uses the default configurations of transformers with random weights, float32, one thread, and reports medians of the
CPU time of the process over rounds in which all ways take turns. "Products alone" is the time that their operations
take at the rate at which the same network's passes run: no implementation that compares all units at all places in the
same precision can be expected to be faster. Assignments do not depend on the number of batches; between networks that
share nothing, as here, they take longest.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
from timing import ratios, take_turns
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from hf_lottery import activation_matching, discover
from hf_lottery.alignment.correlation import correlations, sites
from hf_lottery.alignment.matching import residual_streams
from hf_lottery.hf.tasks.paper_networks import ResNetCifarConfig, ResNetCifarForImageClassification
from hf_lottery.report import markdown_table

HEADER = [
    "networks", "batches", "groups", "places", "both forwards, s", "products alone", "correlations",
    "at one place", "of 256 tokens", "with assignments",
]  # fmt: skip
TOKENS = 256
Inputs = dict[str, torch.Tensor]


def resnet20() -> tuple[Callable[[], torch.nn.Module], Inputs]:
    """Return the ResNet-20 of the alignment paper and 100 images."""
    config = ResNetCifarConfig(num_channels=1, image_size=28, id2label=dict(enumerate("0123456789")))
    return lambda: ResNetCifarForImageClassification(config), {"pixel_values": torch.randn(100, 1, 28, 28)}


def resnet50() -> tuple[Callable[[], torch.nn.Module], Inputs]:
    """Return ResNet-50 and 8 images."""
    return lambda: ResNetForImageClassification(ResNetConfig()), {"pixel_values": torch.randn(8, 3, 224, 224)}


def bert() -> tuple[Callable[[], torch.nn.Module], Inputs]:
    """Return BERT-base and 16 texts of 64 tokens."""
    inputs = {"input_ids": torch.randint(30000, (16, 64)), "attention_mask": torch.ones(16, 64, dtype=torch.long)}
    return lambda: BertForSequenceClassification(BertConfig()), inputs


NETWORKS = {"ResNet-20": resnet20, "ResNet-50": resnet50, "BERT-base": bert}


def products(model: torch.nn.Module, found: list[Any], inputs: Inputs) -> float:
    """Return the operations of the products at all places, over those of one forward pass of both networks."""
    rows: dict[str, int] = {}
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: rows.update({name: _rows(args, output)}))
        for name, module in model.named_modules()
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(**inputs)
    for handle in handles:
        handle.remove()
    per_place = sum(2 * rows[site.module] * site.axis.positions.size**2 for site in found)
    return per_place / (2 * flops.get_total_flops())


def _rows(args: Any, output: Any) -> int:
    x = args[0] if args and isinstance(args[0], torch.Tensor) else output
    if not isinstance(x, torch.Tensor):
        return 0
    return x.shape[0] * x.shape[2:].numel() if x.ndim == 4 else x.shape[:-1].numel()


def measure(name: str, *, batches: int, rounds: int) -> list[str]:
    """Measure one row."""
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]()
    a, b = make().eval(), make().eval()
    with warnings.catch_warnings():  # it tells which axes it froze
        warnings.simplefilter("ignore")
        spec = discover(a, {key: value[:2] for key, value in inputs.items()})
    groups = [group for group in spec.free if group not in residual_streams(spec)]
    pair: dict[str, Any] = {"source": a, "target": b, "batches": [inputs] * batches}

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(batches):
            a(**inputs)
            b(**inputs)

    ways = {
        "forwards": forwards,
        "all": lambda: correlations(spec, groups, **pair),
        "one": lambda: correlations(spec, groups, **pair, one_place=True),
        "tokens": lambda: correlations(spec, groups, **pair, tokens=TOKENS),
        "whole": lambda: activation_matching(spec, **pair),
    }
    with warnings.catch_warnings():  # nothing matches better than chance
        warnings.simplefilter("ignore")
        seconds = take_turns(ways, rounds)
    found = list({(site.module, site.axis): site for site in sites(spec, a, groups)}.values())
    over = [f"{statistics.median(ratios(seconds[way], seconds['forwards'])):.2f}" for way in list(ways)[1:]]
    first = [name, str(batches), str(len(groups)), str(len(found))]
    return [*first, f"{statistics.median(seconds['forwards']):.2f}", f"{1 + products(a, found, inputs):.2f}", *over]


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of the table."""
    if quick:
        return [measure("ResNet-20", batches=1, rounds=2)]
    chosen = (("ResNet-20", 1, 9), ("ResNet-50", 1, 3), ("BERT-base", 1, 3), ("BERT-base", 4, 2))
    return [measure(name, batches=batches, rounds=rounds) for name, batches, rounds in chosen]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(name, batches=args.batches, rounds=args.rounds) for name in args.networks or ()] or rows()
    print(markdown_table(HEADER, found))


if __name__ == "__main__":
    main()
