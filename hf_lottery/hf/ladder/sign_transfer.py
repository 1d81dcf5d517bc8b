"""The experiment of the sign paper: do the signs of a ticket let another initialization win?

    python recipes/sign_transfer.py --config recipes/mnist1d/sign_transfer.yaml --seeds 0 1 2 3 4

For each seed, AWS and learning-rate rewinding (LRR, the same but for the interpolated norms) each find a subnetwork.
Then networks of another initialization are trained, all on the same batches:

- ``dense``: no mask,
- ``aws_signs``, ``lrr_signs``: the mask and the signs,
- ``aws_mask``, ``lrr_mask``: the mask alone,
- ``aws_random``, ``aws_shuffled``: the mask, with random signs, and with the signs shuffled within each layer,
- ``lrr_signs_norms``: the mask, the signs and the trained norms,
- ``dense_signs``: the mask of AWS with the signs of the dense network of the same seed, trained to the end,

and ``aws``, ``lrr`` are the subnetworks themselves, trained on. The barrier is the largest test error on the straight
line between such a solution and the one of its signs, minus the mean of the ends, with recalibrated batch norms.

Reference: Oh, Baik and Lee, 2025, "Find A Winning Sign: Sign Is All We Need to Win the Lottery", arXiv:2504.05357.
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

from ...connectivity.barrier import error_barrier
from ...masks.mask import Mask
from ...report import markdown_table
from ...signs.signed_mask import SignedMask
from ...storage.atomic import write_atomically
from ..commands.common import ModelArguments, build_model, load_task_data, mean_and_std, set_up, trainer_arguments
from ..commands.connectivity import Judge
from ..commands.parser import RecipeParser
from ..tasks.data import Data, DataArguments
from ..trainers.arguments import LotteryArguments
from ..trainers.sparse_trainer import SparseTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer

METHODS = {"aws": "step", "lrr": "none"}
TRAININGS = (
    "dense", "aws", "lrr", "aws_signs", "lrr_signs", "aws_mask", "lrr_mask", "aws_random", "aws_shuffled",
    "lrr_signs_norms", "dense_signs",
)  # fmt: skip
DIFFERENCES = (
    ("aws_signs", "aws_mask"), ("lrr_signs", "lrr_mask"), ("aws_signs", "lrr_signs"), ("aws_signs", "aws_random"),
    ("aws_signs", "aws_shuffled"), ("aws_signs", "dense_signs"), ("lrr_signs_norms", "lrr_signs"),
    ("aws", "aws_signs"), ("dense", "aws_signs"),
)  # fmt: skip


@dataclass
class ExperimentArguments:
    """How often."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4], metadata={"help": "Seeds of the subnetworks."})


class Experiment:
    """All trainings of one seed.

    Args:
        seed: Of the subnetworks; the other initialization has ``seed + 1000``.
        folder: Where the searches are kept.
        model_args: The network.
        data: What it trains on.
        args: Schedule and sparsity.
    """

    def __init__(self, seed: int, folder: Path, model_args: ModelArguments, data: Data, args: LotteryArguments):
        self.seed, self.folder, self.model_args, self.data, self.args = seed, folder, model_args, data, args
        self.arguments = trainer_arguments(model_args.task, data)
        self.results: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Test accuracy of every training and the diagnostics, in percent."""
        found = {method: self.search(method) for method in METHODS}
        self.train("dense", self.fresh(), None)
        for method, finder in found.items():
            signed = finder.signed
            solution = self.train(method, self.fresh(finder.ticket), signed.mask)
            network = self.fresh()
            signed.transfer_(network)
            transferred = self.train(f"{method}_signs", network, signed.mask)
            self.train(f"{method}_mask", self.fresh(), signed.mask)
            if method == "lrr":
                network = self.fresh()
                signed.transfer_(network)
                trained = self.fresh(finder.ticket).state_dict()
                network.load_state_dict({name: trained[name] for name in finder.norms}, strict=False)
                self.train("lrr_signs_norms", network, signed.mask)
            self.results[f"{method}_barrier"] = self.barrier(transferred, solution)
            self.results[f"{method}_kept_signs"] = 100 * signed.agreement(transferred).overall
            self.results[f"{method}_norm_path"] = 100 * finder.norm_path(2)[-1][1]["eval_accuracy"]
        mask = found["aws"].signed
        own = SignedMask.from_model(self.own_dense(), mask.mask, norms=found["aws"].norms)
        for name, signed in {
            "aws_random": mask.randomized(self.seed), "aws_shuffled": mask.shuffled(self.seed), "dense_signs": own,
        }.items():  # fmt: skip
            network = self.fresh()
            signed.transfer_(network)
            self.train(name, network, signed.mask)
        return self.results

    def search(self, method: str) -> WinningSignTrainer:
        """Find a subnetwork; a search that was interrupted goes on."""
        args = copy.copy(self.args)
        args.seed, args.norm_interpolation, args.output_dir = self.seed, METHODS[method], str(self.folder / method)
        finder = WinningSignTrainer(
            model=build_model(self.model_args, self.data, self.seed), args=args, **self.arguments
        )
        finder.train(resume_from_checkpoint=True)
        return finder

    def fresh(self, ticket: Any = None) -> nn.Module:
        """Another initialization, or where a ticket starts."""
        model = build_model(self.model_args, self.data, self.seed + 1000, fresh=True)
        if ticket is not None:
            ticket.apply_(model)
        return model

    def own_dense(self) -> nn.Module:
        """The dense network of the same initialization as the subnetworks, trained to the end."""
        return self.train("own_dense", build_model(self.model_args, self.data, self.seed), None)

    def train(self, name: str, model: nn.Module, mask: Mask | None) -> nn.Module:
        """Train on the whole schedule, on the batches that all trainings of the seed see."""
        args = copy.copy(self.args)
        args.seed, args.output_dir, args.save_strategy = self.seed + 1000, str(self.folder / "trainings"), "no"
        set_seed(args.seed)
        trainer = SparseTrainer(model=model, args=args, mask=mask, **self.arguments)
        trainer.train()
        self.results[name] = 100 * trainer.evaluate()["eval_accuracy"]
        return model

    def barrier(self, a: nn.Module, b: nn.Module) -> float:
        """The error barrier between two networks, in points of test accuracy."""
        args = copy.copy(self.args)
        args.seed = self.seed
        trainer = SparseTrainer(model=a, args=args, **self.arguments)
        judge = Judge(trainer, self.model_args.task, 16 * args.per_device_train_batch_size)
        return 100 * error_barrier(a, b, judge).barrier


def main() -> None:
    """Run the experiment; finished seeds are skipped."""
    parser = RecipeParser([ExperimentArguments, ModelArguments, DataArguments, LotteryArguments])
    experiment, model_args, data_args, args = parser.parse()
    set_up(args)
    with args.main_process_first():
        data = load_task_data(model_args, data_args, model_args.load_config())
    base = Path(args.output_dir)
    results: dict[str, dict[str, float]] = {}
    for seed in experiment.seeds:
        file = base / f"seed-{seed}.json"
        if file.exists():
            results[str(seed)] = json.loads(file.read_text())
            continue
        results[str(seed)] = found = Experiment(seed, base / f"seed-{seed}", model_args, data, args).run()
        if args.should_save:
            write_atomically(file, (json.dumps(found, indent=2) + "\n").encode())
    if args.should_save:
        print(f"\n{table(results)}")


def table(results: dict[str, dict[str, float]]) -> str:
    """Mean and standard deviation over the seeds, and of the paired differences."""
    columns = {name: np.array([result[name] for result in results.values()]) for name in next(iter(results.values()))}
    order = [*TRAININGS, *(name for name in columns if name not in TRAININGS)]
    rows = [[name, mean_and_std(columns[name]), *(f"{value:.2f}" for value in columns[name])] for name in order]
    pairs = [(f"{a} - {b}", columns[a] - columns[b]) for a, b in DIFFERENCES]
    pairs.append(("lrr_barrier - aws_barrier", columns["lrr_barrier"] - columns["aws_barrier"]))
    differences = [[name, mean_and_std(values), f"{(values > 0).sum()} of {len(values)}"] for name, values in pairs]
    header = ["", "mean ± std", *(f"seed {seed}" for seed in results)]
    paired = markdown_table(["paired difference", "mean ± std", "positive"], differences)
    return f"{markdown_table(header, rows)}\n\n{paired}"


if __name__ == "__main__":
    main()
