"""The experiment of the alignment paper: is a mask worth something on another seed once it is permuted?

    python recipes/three_trainings.py --config recipes/fashion_mnist/rebasin.yaml --seeds 0 1 2 3 4

For each seed, network A is pruned to a ticket (mask and rewind point), network B is trained dense from another
initialization, and A's dense solution is matched to B's. Then three sparse trainings from the same step:

- ``lth``: A's rewind point under A's mask,
- ``naive``: B's rewind point under A's mask,
- ``permuted``: B's rewind point under A's mask, permuted into B's basin.

Reference: Adnan et al., 2025, "Sparse Training from Random Initialization: Aligning Lottery Ticket Masks using Weight
Symmetry", arXiv:2505.05143.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import set_seed

from ...masks.mask import Mask
from ...report import markdown_table
from ...storage.atomic import write_atomically
from ...symmetry.discovery import discover
from ...training.snapshot import Snapshot
from ..commands.align_mask import match
from ..commands.common import ModelArguments, build_model, load_task_data, mean_and_std, set_up, trainer_arguments
from ..commands.parser import RecipeParser
from ..tasks.batches import example_batch
from ..tasks.data import Data, DataArguments
from ..trainers.arguments import LotteryArguments
from ..trainers.callbacks import SnapshotCallback
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.sparse_trainer import SparseTrainer

TRAININGS = ("dense", "lth", "naive", "permuted")


@dataclass
class ExperimentArguments:
    """How often, and how to match."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of network A."})
    method: str = field(default="activation", metadata={"help": "Matching: activation or weight."})
    match_batches: int = field(default=32, metadata={"help": "Training batches to match activations on."})


def main() -> None:
    """Run the experiment; finished seeds are skipped."""
    parser = RecipeParser([ExperimentArguments, ModelArguments, DataArguments, LotteryArguments])
    experiment, model_args, data_args, args = parser.parse()
    set_up(args)
    with args.main_process_first():
        data = load_task_data(model_args, data_args, model_args.load_config())
    base = Path(args.output_dir)
    file = base / "three_trainings.json"
    results: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    for seed in experiment.seeds:
        if str(seed) not in results:
            results[str(seed)] = run_seed(seed, base / f"seed-{seed}", experiment, model_args, data, args)
            if args.should_save:
                write_atomically(file, (json.dumps(results, indent=2) + "\n").encode())
    if args.should_save:
        print(f"\n{table(results)}")


def run_seed(
    seed: int, folder: Path, experiment: ExperimentArguments, model_args: ModelArguments, data: Data, args: Any
) -> dict[str, float]:
    """Accuracy of the dense network B and of the three trainings, in percent, and how well the matching did."""
    args = copy.copy(args)
    args.seed, args.output_dir = seed, str(folder / "a")
    arguments = trainer_arguments(model_args.task, data)
    finder = LotteryTrainer(model=build_model(model_args, data, seed), args=args, **arguments)
    finder.train(resume_from_checkpoint=True)
    ticket = finder.ticket
    source = build_model(model_args, data, seed)
    source.load_state_dict(type(source).from_pretrained(folder / "a/level-00/trained").state_dict())

    args.output_dir, args.save_strategy = str(folder / "b"), "no"
    other = seed + 1000
    target, moment = build_model(model_args, data, other), folder / "b/rewind.safetensors"
    accuracy = {"dense": _train(target, None, 0, other, args, arguments, SnapshotCallback(ticket.start.step, moment))}

    spec = discover(source, example_batch(finder))
    permutation = match(experiment.method, spec, source, target, finder, experiment.match_batches)
    if args.should_save:
        print(permutation.report)
    aligned = permutation(ticket.mask)
    for name, start, mask in (
        ("lth", ticket.start, ticket.mask),
        ("naive", Snapshot.load(moment), ticket.mask),
        ("permuted", Snapshot.load(moment), aligned),
    ):
        model = build_model(model_args, data, other)
        start.restore_(model)
        accuracy[name] = _train(model, mask, start.step, other, args, arguments)
    return accuracy | {"overlap": 100 * aligned.overlap(ticket.mask).iou}


def _train(
    model: nn.Module,
    mask: Mask | None,
    first_step: int,
    seed: int,
    args: Any,
    arguments: dict[str, Any],
    *callbacks: Any,
) -> float:
    set_seed(seed)
    trainer = SparseTrainer(
        model=model, args=args, mask=mask, first_step=first_step, callbacks=list(callbacks), **arguments
    )
    trainer.train()
    return 100 * trainer.evaluate()["eval_accuracy"]


def table(results: dict[str, dict[str, float]]) -> str:
    """Mean and standard deviation over the seeds, and of the paired differences."""
    columns = {name: np.array([result[name] for result in results.values()]) for name in TRAININGS}
    columns["permuted - naive"] = columns["permuted"] - columns["naive"]
    columns["lth - permuted"] = columns["lth"] - columns["permuted"]
    rows = [[seed, *(f"{result[name]:.2f}" for name in TRAININGS)] for seed, result in results.items()]
    spread = [[name, mean_and_std(values), f"{(values > 0).sum()}"] for name, values in columns.items()]
    return (
        markdown_table(["seed", *TRAININGS], rows)
        + f"\n\n{markdown_table(['', f'mean ± std of {len(results)} seeds', 'positive in'], spread)}"
    )


if __name__ == "__main__":
    main()
