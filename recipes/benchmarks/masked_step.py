"""Measure what it costs to hold a mask: time of a training step, time inside the mask itself, and memory.

    python recipes/benchmarks/masked_step.py             # about 8 minutes
    python recipes/benchmarks/masked_step.py --quick     # one minute, smaller batches: masks take a larger share

It uses one thread and measures the CPU time of the process. All variants of a network live in one process and take
turns, in a new order every round; a ratio compares two steps of one round. "dense, fused, again" is a second copy of
the network that the column divides by: its spread is the noise, and a ratio within it says nothing. The time inside the
mask is measured in the same steps, around every call of the mask, and is much less noisy.
"""

import argparse
import copy
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from timing import processor, ratios, spread
from torch import Tensor, optim
from torch.nn.utils.prune import custom_from_mask
from transformers import PreTrainedModel

from hf_lottery import Mask, keep_sparse, magnitude, prunable, prune, score_weights
from hf_lottery.report import markdown_table

SPARSITY = 0.8
CASE = ["network", "optimizer", "variant"]
HEADER = [*CASE, "ms", "x dense default", "goal", "x dense fused", "goal"]
MASK_HEADER = [*CASE, "weights", "ns/weight in the mask", "goal", "% of dense fused", "goal", "bytes/weight", "goal"]
TOKENS = 64  # in a sequence of BERT and GPT-2; an image has 64 patches for ViT
TRANSFORMER: Any = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "SGD": lambda parameters, fused: optim.SGD(parameters, lr=1e-4, momentum=0.9, fused=fused),
    "AdamW": lambda parameters, fused: optim.AdamW(parameters, lr=1e-5, fused=fused),
}


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        name: Its name in the tables.
        fused: An argument of the optimizer; None is torch's default.
        mask: What holds the mask: "number" or "bit" (``keep_sparse``), "torch", or nothing.
    """

    name: str
    fused: bool | None
    mask: str = ""


VARIANTS = (
    PLAIN := Variant("dense, default optimizer", None),
    FUSED := Variant("dense, fused", True),
    Variant("dense, fused, again", True),
    NUMBER := Variant("keep_sparse, fused", True, "number"),
    BIT := Variant("keep_sparse(packed=True), fused", True, "bit"),
    Variant("torch.nn.utils.prune, default optimizer", None, "torch"),
)
# Whether the network is ResNet-18 -> goals against the default and the fused optimizer.
STEP_GOALS = {True: ("<= 1.00", "<= 1.06"), False: ("-", "<= 1.01")}
# Variant -> goals in nanoseconds and bytes for each weight. A mask runs on the gradient and on the weight.
MASK_GOALS = {NUMBER: ("<= 0.80", "<= 4"), BIT: ("<= 1.30", "<= 0.13")}


def resnet18(batch: int) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    config = transformers.ResNetConfig(
        layer_type="basic", embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2]
    )
    return transformers.ResNetForImageClassification(config), images(batch)


def bert(batch: int) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    tokens = torch.randint(1000, (batch, TOKENS))
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TRANSFORMER, vocab_size=1000))
    return model, {"input_ids": tokens, "labels": torch.randint(2, (batch,))}


def vit(batch: int) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    config = transformers.ViTConfig(**TRANSFORMER, image_size=32, patch_size=4)
    return transformers.ViTForImageClassification(config), images(batch)


def gpt2(batch: int) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    sizes: Any = dict(vocab_size=1000, n_positions=TOKENS, n_embd=256, n_layer=4, n_head=4)
    tokens = torch.randint(1000, (batch, TOKENS))
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens}


def images(batch: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 32, 32), "labels": torch.randint(2, (batch,))}


NETWORKS = {"ResNet-18": (resnet18, 64), "BERT-4": (bert, 32), "ViT-4": (vit, 32), "GPT-2-4": (gpt2, 32)}


@dataclass
class Run:
    """One variant in training, with the seconds of every step and the part of them inside the mask."""

    variant: Variant
    model: PreTrainedModel
    optimizer: optim.Optimizer
    masks: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    mask_seconds: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, variant: Variant, model: PreTrainedModel, mask: Mask, make_optimizer: Callable) -> "Run":
        model = copy.deepcopy(model).train()
        if variant.mask == "torch":
            for name, entry in mask.items():
                custom_from_mask(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], entry)
        run = cls(variant, model, make_optimizer(model.parameters(), variant.fused))
        if variant.mask in ("number", "bit"):
            handle = keep_sparse(model, mask, run.optimizer, packed=variant.mask == "bit")
            run.masks = [held for _, held in handle.bound.values()]
            for held in run.masks:
                held.clear_pruned_ = run._timed(held.clear_pruned_)
        return run

    def step(self, inputs: dict[str, Tensor]) -> None:
        self.mask_seconds.append(0.0)
        start = time.process_time()
        self.optimizer.zero_grad()
        self.model(**inputs).loss.backward()
        self.optimizer.step()
        self.seconds.append(time.process_time() - start)

    def resident_bytes(self) -> int:
        return sum(held.bits.nbytes if self.variant.mask == "bit" else held.keep.nbytes for held in self.masks)

    def _timed(self, clear: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def timed(tensor: Tensor) -> None:
            start = time.process_time()
            clear(tensor)
            self.mask_seconds[-1] += time.process_time() - start

        return timed


def measure(network: str, make_optimizer: Callable, batch: int, rounds: int) -> tuple[dict[Variant, Run], int]:
    """Train every variant for ``rounds`` steps after a warm-up; return them and the number of masked weights."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[network][0](batch)
    mask = prune(score_weights(prunable(model), magnitude), SPARSITY)
    runs = {variant: Run.start(variant, model, mask, make_optimizer) for variant in VARIANTS}
    warm_up, order = 2, list(runs.values())
    for _ in range(warm_up + rounds):
        random.shuffle(order)
        for run in order:
            run.step(inputs)
    for run in order:
        del run.seconds[:warm_up], run.mask_seconds[:warm_up]
    return runs, mask.weights


def step_rows(case: list[str], runs: dict[Variant, Run]) -> list[list[str]]:
    rows, goals = [], STEP_GOALS[case[0] == "ResNet-18"]
    for variant, run in runs.items():
        row = [*case, variant.name, f"{statistics.median(run.seconds) * 1e3:.1f}"]
        for base, goal in zip((PLAIN, FUSED), goals, strict=True):
            shares = spread(ratios(run.seconds, runs[base].seconds))
            row += ["1" if variant is base else shares, goal if variant in MASK_GOALS else "-"]
        rows.append(row)
    return rows


def mask_rows(case: list[str], runs: dict[Variant, Run], weights: int) -> list[list[str]]:
    rows, dense = [], statistics.median(runs[FUSED].seconds)
    for variant, (time_goal, byte_goal) in MASK_GOALS.items():
        seconds = runs[variant].mask_seconds
        nanoseconds = spread([second / weights * 1e9 for second in seconds])
        shares = spread([100 * second / dense for second in seconds], 2)
        share_goal = "<= 6" if case[0] == "ResNet-18" else "<= 1"
        size = f"{runs[variant].resident_bytes() / weights:.4f}"
        rows.append([*case, variant.name, f"{weights:,}", nanoseconds, time_goal, shares, share_goal, size, byte_goal])
    return rows


def measure_all(
    networks: Sequence[str], optimizers: Sequence[str], *, rounds: int, shrink: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rows of whole steps, under ``HEADER``, and of the time inside the mask, under ``MASK_HEADER``."""
    transformers.logging.set_verbosity_error()
    steps, masks = [], []
    for network in networks:
        for optimizer in optimizers:
            runs, weights = measure(network, OPTIMIZERS[optimizer], NETWORKS[network][1] // shrink, rounds)
            steps += step_rows([network, optimizer], runs)
            masks += mask_rows([network, optimizer], runs, weights)
    return steps, masks


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of whole steps of two networks, under ``HEADER``; quick ones are of small batches."""
    networks, optimizers = (["BERT-4"], ["SGD"]) if quick else (["ResNet-18", "BERT-4"], list(OPTIMIZERS))
    return measure_all(networks, optimizers, rounds=3 if quick else 7, shrink=8 if quick else 1)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="steps of every variant")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--quick", action="store_true", help="a quarter of the batch, 5 rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds, shrink = (5, 4) if arguments.quick else (arguments.rounds, 1)

    steps, masks = measure_all(arguments.networks, arguments.optimizers, rounds=rounds, shrink=shrink)
    print(
        f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; sparsity {SPARSITY}, {rounds} rounds. Spreads: min / q1 / median / max.\n"
    )
    print(markdown_table(HEADER, steps), end="\n\n")
    print(markdown_table(MASK_HEADER, masks))


if __name__ == "__main__":
    main()
