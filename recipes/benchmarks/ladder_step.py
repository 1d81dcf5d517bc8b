"""Measure a training step of the ladder: its bare loop, over a loop written by hand, and beside the plain Trainer.

    python recipes/benchmarks/ladder_step.py             # about 2 minutes
    python recipes/benchmarks/ladder_step.py --quick     # seconds, one network, one round

It uses one thread and measures the CPU time of the process, on 4,000 signals as long as those of MNIST-1D, 100 a batch,
with a mask that removes 90 %. The loop by hand has the same mask, optimizer and schedule. The ways take turns in one
process that is set up as the ladder's workers are. The least of all rounds counts, which other processes disturb least.
"""

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers
from timing import cpu_seconds, show
from torch import nn, optim
from transformers import PreTrainedModel, PrinterCallback

from hf_lottery import LotteryArguments, Mask, SparseTrainer, keep_sparse, magnitude, prunable, prune, score_weights
from hf_lottery.hf.commands.launch import remember_absence
from hf_lottery.hf.ladder.bare_loop import BareSparseTrainer
from hf_lottery.hf.tasks.images import ImageDataset
from hf_lottery.hf.tasks.paper_networks import (
    LeNetConfig,
    LeNetForImageClassification,
    ResNetCifarConfig,
    ResNetCifarForImageClassification,
)
from hf_lottery.hf.trainers.garbage import frozen_collector

SAMPLES, BATCH, SPARSITY, RATE = 4000, 100, 0.9, 0.02
HEADER = ["network", "max_grad_norm", "by hand, ms a step", "bare loop, x by hand", "SparseTrainer, x by hand"]
SIZES: Any = {"num_channels": 1, "num_labels": 10}
RESNET: Any = {**SIZES, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "kernel_size": [1, 3]}
# Network -> how to make it, and epochs of a training.
NETWORKS: dict[str, tuple[Callable[[], PreTrainedModel], int]] = {
    "LeNet-300-100": (lambda: LeNetForImageClassification(LeNetConfig(**SIZES, image_size=[1, 40])), 10),
    "ResNet-8": (lambda: ResNetCifarForImageClassification(ResNetCifarConfig(**RESNET)), 1),
}


def by_hand(model: PreTrainedModel, mask: Mask, data: ImageDataset, epochs: int, limit: float) -> None:
    images: Any = data.images
    steps = epochs * SAMPLES // BATCH
    optimizer = optim.SGD(model.parameters(), lr=RATE, momentum=0.9, fused=True)
    schedule = transformers.get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=steps)
    parameters = [*model.parameters()]
    model.train()
    with keep_sparse(model, mask, optimizer):
        for _ in range(epochs):
            for rows in torch.randperm(SAMPLES).split(BATCH):
                model(pixel_values=images[rows], labels=data.labels[rows]).loss.backward()
                if limit:
                    nn.utils.clip_grad_norm_(parameters, limit)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def trainer(
    kind: type[SparseTrainer], model: PreTrainedModel, mask: Mask, data: ImageDataset, epochs: int, limit: float
) -> SparseTrainer:
    args = LotteryArguments(
        tempfile.mkdtemp(), num_train_epochs=epochs, per_device_train_batch_size=BATCH, learning_rate=RATE, optim="sgd",
        optim_args="momentum=0.9", lr_scheduler_type="cosine", max_grad_norm=limit, use_cpu=True, save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    made = kind(model=model, args=args, train_dataset=data, mask=mask)
    made.remove_callback(PrinterCallback)
    return made


def measure(network: str, limit: float, rounds: int) -> list[str]:
    torch.manual_seed(0)
    make, epochs = NETWORKS[network]
    start, data = make(), ImageDataset(torch.randn(SAMPLES, 1, 1, 40), torch.randint(10, (SAMPLES,)))
    mask = prune(score_weights(prunable(start), magnitude), SPARSITY)
    spent: dict[Any, list[float]] = {by_hand: [], BareSparseTrainer: [], SparseTrainer: []}
    for _ in range(rounds):
        for way, seconds in spent.items():
            given = copy.deepcopy(start), mask, data, epochs, limit
            train = (lambda given=given: by_hand(*given)) if way is by_hand else trainer(way, *given).train
            seconds.append(cpu_seconds(train))
    hand, bare, plain = map(min, spent.values())
    milliseconds = 1e3 * hand * BATCH / (epochs * SAMPLES)
    return [network, f"{limit:g}", f"{milliseconds:.2f}", f"{bare / hand:.2f}", f"{plain / hand:.2f}"]


def rows(*, quick: bool = False) -> list[list[str]]:
    """Measure the networks with and without clipping.

    Args:
        quick: Whether to train the first network alone, once.

    Returns:
        The rows of the table under ``HEADER``.
    """
    transformers.logging.set_verbosity_error()
    remember_absence("lomo_optim")
    networks = [*NETWORKS][:1] if quick else NETWORKS
    with frozen_collector():
        return [measure(network, limit, 1 if quick else 9) for network in networks for limit in (0.0, 1.0)]


if __name__ == "__main__":
    show(__doc__, HEADER, rows, quick="the first network alone, once")
