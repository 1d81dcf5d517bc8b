"""Measure what a proof costs: discover in float32 forward passes, and verify with its control in float64 ones.

    OMP_NUM_THREADS=1 python recipes/benchmarks/proof.py
    OMP_NUM_THREADS=1 python recipes/benchmarks/proof.py --quick

It uses networks of real size with random weights, and one thread. Proofs and bare passes take turns; a ratio compares
two neighbours by the CPU time of the process, and the table has the median. Memory is the largest resident size during
one call of discover in a fresh process, beyond what was there before it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import cpu_seconds
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_lottery import discover
from hf_lottery.report import markdown_table

HEADER = [
    "network", "tensors' axes that move", "discover / float32 pass", "GB beyond the model", "fast / float32 pass",
    "verify / float64 pass", "verify, s",
]  # fmt: skip
_PAGE = 4096


def _text(batch: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 900, (batch, 64)), "attention_mask": torch.ones(batch, 64, dtype=torch.long)}


def _images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 224, 224)}


def networks(quick: bool) -> dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]]:
    """Return name -> network and a batch; in quick runs only small ones."""

    def bert(layers: int, **sizes: Any) -> Callable[[], nn.Module]:
        return lambda: BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **sizes))

    if quick:
        small = {"hidden_size": 128, "num_attention_heads": 16, "intermediate_size": 256, "vocab_size": 1000}
        return {f"BERT of 128, {n} layers": (bert(n, **small), _text(4)) for n in (2, 4)}
    return {
        "BERT-base, 3 layers": (bert(3), _text(4)),
        "BERT-base, 6 layers": (bert(6), _text(4)),
        "BERT-base": (bert(12), _text(4)),
        "ViT-B/16": (lambda: ViTForImageClassification(ViTConfig()), _images()),
        "ResNet-50": (lambda: ResNetForImageClassification(ResNetConfig()), _images()),
    }


def peak_beyond(action: Callable[[], Any]) -> float:
    """Return how many bytes the process had at most beyond those before."""
    done, sizes = threading.Event(), [_resident()]

    def watch() -> None:
        while not done.wait(0.005):
            sizes.append(_resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        action()
    finally:
        done.set()
        thread.join()
    return max(sizes) - sizes[0]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def measure(name: str, quick: bool, repeats: int) -> list[str]:
    """Measure one row."""
    make, batch = networks(quick)[name]
    model = make().eval()

    @torch.no_grad()
    def single() -> None:
        model(**batch)

    single()
    spec = discover(model, batch, proof="later")
    alone = [sys.executable, __file__, "--memory", name, *(["--quick"] if quick else [])]
    beyond = float(subprocess.run(alone, check=True, capture_output=True, text=True).stdout.split()[-1])
    full, fast, control, seconds = [], [], [], []
    for _ in range(repeats):
        full.append(1 / cpu_seconds(single) * cpu_seconds(lambda: discover(model, batch)))
        fast.append(1 / cpu_seconds(single) * cpu_seconds(lambda: discover(model, batch, proof="fast")))
    double = make().eval().double()
    doubled = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}

    @torch.no_grad()
    def bare() -> None:
        double(**doubled)

    bare()
    for _ in range(max(1, repeats // 2)):
        floor = cpu_seconds(bare)
        seconds.append(cpu_seconds(lambda: spec.verify(model, batch)))
        control.append(seconds[-1] / floor)
    ties = sum(len(spec.members[group]) for group in spec.free)
    middle = statistics.median
    return [name, str(ties), f"{middle(full):.1f}", f"{beyond / 1e9:.2f}", f"{middle(fast):.1f}",
            f"{middle(control):.1f}", f"{middle(seconds):.1f}"]  # fmt: skip


def rows(*, quick: bool = False, repeats: int = 5) -> list[list[str]]:
    """Measure all rows of the table under HEADER."""
    return [measure(name, quick, repeats) for name in networks(quick)]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small networks, in some seconds")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", metavar="NETWORK", help="only print the bytes of one discover in a fresh process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.memory:
        make, batch = networks(args.quick)[args.memory]
        model = make().eval()
        with torch.no_grad():
            model(**batch)
        print(peak_beyond(lambda: discover(model, batch)))
        return
    print(markdown_table(HEADER, rows(quick=args.quick, repeats=args.repeats)))


if __name__ == "__main__":
    main()
