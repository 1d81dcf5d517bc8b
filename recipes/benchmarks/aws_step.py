"""Measure what interpolated norms cost: a training step of "A Winning Sign" (AWS) over a masked step.

    python recipes/benchmarks/aws_step.py        # about 4 minutes

It uses one thread, AdamW (fused) and sparsity 0.8, and measures the CPU time of the process. A masked step, a step of
AWS and another masked step take turns on one network, in a new order every round. A ratio compares two steps of one
round; "masked, again" shows the noise. The time at the two ends of the block that interpolates is measured in the same
steps and is much less noisy; it does not include the hooks on the gradients.
"""

import argparse
import platform
import random
import statistics
import time

import torch
import transformers
from masked_step import NETWORKS, OPTIMIZERS, SPARSITY
from timing import processor, ratios, spread
from torch import Tensor, nn, optim

from hf_lottery import (
    interpolated_norms,
    keep_sparse,
    magnitude,
    norm_parameters,
    prunable,
    prune,
    score_weights,
)
from hf_lottery.report import markdown_table

HEADER = ["network", "norm tensors", "masked ms", "AWS (goal <= 1.02)", "masked, again", "% in the block's ends"]
STEPS = ("masked", "AWS", "masked, again")


class Timed:
    """Steps of one network, plain and with interpolated norms."""

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, inputs: dict[str, Tensor]):
        self.model, self.optimizer, self.inputs = model, optimizer, inputs
        self.norms = norm_parameters(model)
        self.initial = self.norms.snapshot()
        self.seconds: dict[str, list[float]] = {name: [] for name in STEPS}
        self.ends: list[float] = []

    def step(self, name: str) -> None:
        start = time.process_time()
        self.optimizer.zero_grad()
        if name == "AWS":
            block = interpolated_norms(self.norms, self.initial, random.random())
            entering = time.process_time()
            block.__enter__()
            entered = time.process_time()
            self.model(**self.inputs).loss.backward()
            leaving = time.process_time()
            block.__exit__(None, None, None)
            self.ends.append(entered - entering + time.process_time() - leaving)
        else:
            self.model(**self.inputs).loss.backward()
        self.optimizer.step()
        self.seconds[name].append(time.process_time() - start)


def measure(network: str, rounds: int) -> list[str]:
    torch.manual_seed(0)
    build, batch = NETWORKS[network]
    model, inputs = build(batch)
    optimizer = OPTIMIZERS["AdamW"](model.parameters(), True)
    keep_sparse(model.train(), prune(score_weights(prunable(model), magnitude), SPARSITY), optimizer)
    timed, warm_up = Timed(model, optimizer, inputs), 2
    for _ in range(warm_up + rounds):
        for name in random.sample(STEPS, len(STEPS)):
            timed.step(name)
    seconds = {name: values[warm_up:] for name, values in timed.seconds.items()}
    masked = seconds["masked"]
    shares = [spread(ratios(seconds[name], masked)) for name in ("AWS", "masked, again")]
    middle = statistics.median(masked)
    ends = spread([100 * end / middle for end in timed.ends[warm_up:]], 2)
    return [network, str(len(timed.norms)), f"{middle * 1e3:.1f}", *shares, ends]


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows of all networks, under ``HEADER``; quick ones are of one network and few rounds."""
    transformers.logging.set_verbosity_error()
    return [measure(network, 2 if quick else 15) for network in (["ResNet-18"] if quick else NETWORKS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="steps of each kind")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    found = [measure(network, arguments.rounds) for network in arguments.networks]
    print(
        f"{processor()}, 1 thread; Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {arguments.rounds} rounds. Spreads: min / q1 / median / max.\n"
    )
    print(markdown_table(HEADER, found))


if __name__ == "__main__":
    main()
