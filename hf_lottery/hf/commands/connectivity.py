"""See whether two trained networks lie in the same basin, before and after one is aligned to the other.

    accelerate launch recipes/connectivity.py --config recipes/digits/imp.yaml --a outputs/dense-1 \\
        --b outputs/dense-2 --align activation --output_dir outputs/connectivity

Measures the error on the straight line between the networks on the test data, with batch norms recalibrated at every
point, and the same after ``a`` was permuted to match ``b``. If both folders hold masks, their overlap is measured too.
Writes ``report.html`` with its pictures and numbers, and the permutation.

References:
    Frankle et al., 2020, arXiv:1912.05671. Ainsworth et al., 2023, "Git Re-Basin", arXiv:2209.04836.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from ...connectivity.barrier import Barrier, error_barrier
from ...connectivity.repair import batch_norms, recalibrate_batch_norm_
from ...masks.mask import Mask
from ...report import write_report
from ...storage.atomic import write_atomically
from ...symmetry.discovery import discover
from ...symmetry.permutation import Permutation, permute_
from ..commands.parser import RecipeParser
from ..tasks.batches import evaluation_batches, example_batch, training_batches
from ..tasks.data import DataArguments
from ..trainers.arguments import LotteryArguments
from .align_mask import load_network, match
from .common import ModelArguments, load_task_data, set_up, trainer_arguments
from .report_sections import match_sections, overlap_sections, path_sections

# How a is matched to b, and the score of the match.
METHODS = {"activation": "mean correlation of units", "weight": "cosine similarity of weights", "none": ""}


@dataclass
class ConnectivityArguments:
    """Which networks, and how to align them."""

    a: str = field(
        metadata={
            "help": "Folder or repository of a network (level-01/trained of a search), with or without a mask, or of "
            "a ticket."
        }
    )
    b: str = field(metadata={"help": "Another, of the same architecture."})
    align: str = field(default="activation", metadata={"help": f"How a is matched to b: {', '.join(METHODS)}."})
    points: int = field(default=11, metadata={"help": "Networks on the line, the ends included."})
    match_batches: int = field(default=32, metadata={"help": "Training batches to match activations on."})
    recalibration_sample: int = field(default=512, metadata={"help": "Training samples for batch-norm statistics."})

    def __post_init__(self) -> None:
        if self.align not in METHODS:
            raise ValueError(f"align must be one of {', '.join(METHODS)}; received {self.align!r}.")
        for name, least in (("points", 2), ("match_batches", 1), ("recalibration_sample", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; received {getattr(self, name)}.")


def main() -> None:
    """Run the recipe."""
    parser = RecipeParser([ConnectivityArguments, ModelArguments, DataArguments, LotteryArguments])
    which, model_args, data_args, args = parser.parse()
    set_up(args)
    a, b = (load_network(folder, model_args.task) for folder in (which.a, which.b))
    masks = [mask for source in (which.a, which.b) if (mask := find_mask(source)) is not None]
    with args.main_process_first():
        data = load_task_data(model_args, data_args, model_args.load_config())
    trainer = Trainer(model=a, args=args, **trainer_arguments(model_args.task, data))
    b.to(args.device)
    judge = Judge(trainer, model_args.task, which.recalibration_sample)
    barriers = {"as they were": error_barrier(a, b, judge, points=which.points)}
    permutation = align(which, a, b, trainer)
    if permutation is not None:
        permute_(a, permutation)
        barriers[f"aligned by {which.align}"] = error_barrier(a, b, judge, points=which.points)
    if args.should_save:
        folder, name = Path(args.output_dir), type(a).__name__
        folder.mkdir(parents=True, exist_ok=True)
        sections = path_sections(barriers, judge.word, name, folder)
        if permutation is not None:
            sections += match_sections(permutation, METHODS[which.align], name, folder)
            permutation.save_pretrained(folder / "permutation")
        if len(masks) == 2:
            sections += overlap_sections(masks[0], masks[1], permutation, name, folder)
        write_report(folder / "report.html", sections, title=f"Connectivity of {name}")
        write_results(folder / "connectivity.json", barriers)
        print(f"report: {folder / 'report.html'}")


def find_mask(source: str) -> Mask | None:
    """The mask that lies beside a network, if one does."""
    try:
        return Mask.from_pretrained(source)
    except FileNotFoundError:
        return None


class Judge:
    """The test error of a network, or its loss as a language model, with batch norms recalibrated on a sample.

    Each process takes its share of the sample and of the test data; all get the error over all of them.

    Args:
        trainer: Has the data, and computes a loss.
        task: What the network is for.
        samples: Training samples to recalibrate on.
    """

    def __init__(self, trainer: Trainer, task: str, samples: int):
        self.trainer = trainer
        self.word = "loss" if task == "causal-lm" else "error"
        self.sample = training_batches(trainer, samples)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        if batch_norms(model):
            recalibrate_batch_norm_(model, self.sample)
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in evaluation_batches(self.trainer):
            labels = batch["labels"]
            sums += torch.tensor([self.errors(model, batch, labels), len(labels)])
        sums = cast(Tensor, self.trainer.accelerator.reduce(sums.to(self.trainer.args.device), "sum"))
        errors, samples = sums.tolist()
        return errors / samples

    def errors(self, model: nn.Module, batch: dict[str, Any], labels: Tensor) -> float:
        """The sum over a batch."""
        with self.trainer.compute_loss_context_manager():
            loss, outputs = cast(Any, self.trainer.compute_loss(model, batch, return_outputs=True))
        return loss.item() * len(labels) if self.word == "loss" else int((outputs.logits.argmax(-1) != labels).sum())


def align(which: ConnectivityArguments, a: PreTrainedModel, b: PreTrainedModel, trainer: Trainer) -> Permutation | None:
    """The permutation that carries ``a`` to ``b``."""
    if which.align == "none":
        return None
    return match(which.align, discover(a, example_batch(trainer)), a, b, trainer, which.match_batches)


def write_results(file: Path, barriers: dict[str, Barrier]) -> None:
    """Print the barriers, and write them with their errors."""
    results = {label: {"barrier": found.barrier, "errors": list(found.errors)} for label, found in barriers.items()}
    write_atomically(file, (json.dumps(results, indent=2) + "\n").encode())
    print("\n" + "\n".join(f"barrier {label}: {found.barrier:.4f}" for label, found in barriers.items()))
