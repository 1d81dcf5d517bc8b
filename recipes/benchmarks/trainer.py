"""Measure what the Trainer costs: SparseTrainer and a level of LotteryTrainer over a bare loop with the same mask.

    python recipes/benchmarks/trainer.py             # about 6 minutes
    python recipes/benchmarks/trainer.py --quick     # seconds, one network, one round

It uses one thread and measures the CPU time of the process. The bare loop draws the same batches in the same order,
and has the same optimizer, clipping and schedule, so it ends at the same weights, which is checked. All ways of a
network take turns in one process, and a ratio compares two of one round. Short trainings have one epoch, as in a ladder
of small networks, and show what every call of ``train()`` costs; long ones show what every step costs. Trainings in a
row run inside ``frozen_collector()``; a SparseTrainer that runs alone is a row of its own.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from accelerate.data_loader import SeedableRandomSampler
from timing import cpu_seconds
from torch import nn, optim
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from hf_lottery import (
    LotteryArguments,
    LotteryTrainer,
    Mask,
    SparseTrainer,
    keep_sparse,
    magnitude,
    prunable,
    prune,
    score_weights,
)
from hf_lottery.hf.tasks.images import ImageDataset
from hf_lottery.hf.tasks.paper_networks import (
    LeNetConfig,
    LeNetForImageClassification,
    ResNetCifarConfig,
    ResNetCifarForImageClassification,
)
from hf_lottery.hf.trainers.garbage import frozen_collector
from hf_lottery.report import markdown_table

SPARSITY, RATE = 0.8, 1e-3
SIZES: Any = {"image_size": 28, "num_channels": 1, "num_labels": 10}
HEADER = ["network", "epochs x steps", "way", "ms a step", "x bare loop", "goal"]


@dataclass(frozen=True)
class Task:
    """A network, and how it is trained.

    Attributes:
        make: Makes the network.
        batch: Images in a batch.
        steps: Steps of an epoch.
        epochs: Epochs of a short and of a long training.
        goal: The largest ratio to the bare loop.
    """

    make: Callable[[], PreTrainedModel]
    batch: int
    steps: int
    epochs: tuple[int, int]
    goal: float

    def data(self) -> ImageDataset:
        count = self.batch * self.steps
        return ImageDataset(torch.randn(count, 1, 28, 28), torch.randint(10, (count,)))


def vit() -> PreTrainedModel:
    sizes: Any = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    return ViTForImageClassification(ViTConfig(**SIZES, **sizes, patch_size=7))


TASKS = {
    "LeNet-300-100": Task(lambda: LeNetForImageClassification(LeNetConfig(**SIZES)), 60, 100, (1, 8), 1.25),
    "ResNet-20": Task(lambda: ResNetCifarForImageClassification(ResNetCifarConfig(**SIZES)), 16, 25, (1, 4), 1.1),
    "ViT-4": Task(vit, 32, 50, (1, 4), 1.1),
}


def bare_loop(model: PreTrainedModel, mask: Mask, data: ImageDataset, task: Task, epochs: int) -> None:
    """Train as the Trainer does by default, with nothing around it."""
    images: Any = data.images
    steps, order = task.steps * epochs, SeedableRandomSampler(data, data_seed=0)
    optimizer = optim.AdamW(model.parameters(), lr=RATE, weight_decay=0, fused=True)
    schedule = transformers.get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)
    model.train()
    with keep_sparse(model, mask, optimizer):
        for _ in range(epochs):
            for rows in torch.tensor([*order]).split(task.batch):
                model(pixel_values=images[rows], labels=data.labels[rows]).loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def arguments(folder: str, task: Task, epochs: int) -> Any:
    return LotteryArguments(
        folder, levels=1, pruning_fraction=SPARSITY, num_train_epochs=epochs, per_device_train_batch_size=task.batch,
        learning_rate=RATE, optim="adamw_torch_fused", data_seed=0, use_cpu=True, dataloader_pin_memory=False,
        save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip


@dataclass
class Comparison:
    """The ways to train one network, which take turns."""

    task: Task
    epochs: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.data, self.start = self.task.data(), self.task.make()
        self.mask = prune(score_weights(prunable(self.start), magnitude), SPARSITY)

    def bare(self, folder: str) -> tuple[PreTrainedModel, float]:
        model = copy.deepcopy(self.start)
        return model, cpu_seconds(lambda: bare_loop(model, self.mask, self.data, self.task, self.epochs))

    def sparse_trainer(self, folder: str) -> tuple[PreTrainedModel, float]:
        model, args = copy.deepcopy(self.start), arguments(folder, self.task, self.epochs)
        trainer = SparseTrainer(model, args, train_dataset=self.data, mask=self.mask)
        return model, cpu_seconds(trainer.train)

    def lottery_trainer(self, folder: str) -> tuple[PreTrainedModel, float]:
        """Time a search of two levels, and count half of it."""
        model, args = copy.deepcopy(self.start), arguments(folder, self.task, self.epochs)
        return model, cpu_seconds(LotteryTrainer(model, args, train_dataset=self.data).train) / 2

    def measure(self, rounds: int) -> dict[str, list[float]]:
        """Return the seconds of every way in every round."""
        ways = {
            "bare loop, keep_sparse": (self.bare, True),
            "SparseTrainer": (self.sparse_trainer, True),
            "SparseTrainer, alone": (self.sparse_trainer, False),
            "LotteryTrainer, a level": (self.lottery_trainer, False),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds + 1):
            models = {}
            for name, (way, frozen) in ways.items():
                with frozen_collector() if frozen else nullcontext(), tempfile.TemporaryDirectory() as folder:
                    models[name], spent = way(folder)
                found[name].append(spent)
            bare, trained = (dict(models[name].named_parameters()) for name in [*ways][:2])
            for name in bare:
                torch.testing.assert_close(trained[name], bare[name], rtol=1e-3, atol=1e-3)
        return {name: spent[1:] for name, spent in found.items()}  # the first round warms up


def rows(*, quick: bool = False, networks: Sequence[str] = tuple(TASKS)) -> list[list[str]]:
    """Measure networks.

    Args:
        networks: Names of ``TASKS``.
        quick: Whether to run the first network's short training alone, once.

    Returns:
        The rows of the table under ``HEADER``.
    """
    transformers.logging.set_verbosity_error()
    table = []
    for name in networks[:1] if quick else networks:
        task = TASKS[name]
        for epochs in task.epochs[:1] if quick else task.epochs:
            found = Comparison(task, epochs).measure(1 if quick else 7)
            bare = found["bare loop, keep_sparse"]
            for way, spent in found.items():
                ratio = statistics.median(mine / base for mine, base in zip(spent, bare, strict=True))
                milliseconds = 1e3 * statistics.median(spent) / (epochs * task.steps)
                goal = "-" if spent is bare or "alone" in way else f"<= {task.goal}"
                case = [name, f"{epochs} x {task.steps}", way]
                table.append([*case, f"{milliseconds:.2f}", f"{ratio:.2f}", goal])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first network's short training alone, once")
    parser.add_argument("--networks", nargs="+", choices=TASKS, default=list(TASKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(markdown_table(HEADER, rows(quick=arguments.quick, networks=arguments.networks)))


if __name__ == "__main__":
    main()
