"""Find a lottery ticket: levels of train, prune and rewind on any image classifier, text classifier or causal LM.

    accelerate launch recipes/find_ticket.py --config recipes/digits/imp.yaml
    accelerate launch recipes/find_ticket.py --config recipes/digits/imp.yaml --sparsity 0.9 --rewind step:50
    accelerate launch recipes/find_ticket.py --config recipes/digits/aws.yaml
    accelerate launch recipes/find_ticket.py --config recipes/digits/imp.yaml --plan
    accelerate launch recipes/find_ticket.py --task text-classification \\
        --model_name_or_path google-bert/bert-base-uncased --dataset_name nyu-mll/glue --dataset_config sst2 \\
        --rewind pretrained --sparsity 0.7 --output_dir outputs/sst2

With ``norm_interpolation`` in the settings the ticket is one of AWS, whose signs let any seed win. A run that was
stopped goes on where it stopped. The ticket lies in ``output_dir/ticket``, and ``output_dir/report.html`` shows it.
With ``--plan`` nothing is trained and nothing written: it prints what the search will cost.
"""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...report import level_table, markdown_table, write_report
from ..commands.parser import RecipeParser
from ..plan import plan_search
from ..tasks.data import DataArguments
from ..trainers.arguments import LotteryArguments
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.sparse_trainer import changed
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .common import ModelArguments, build_model, load_task_data, set_up, trainer_arguments
from .controls import CONTROLS, train_controls
from .report_sections import measure_of, search_report_bytes, search_sections


@dataclass
class FindArguments:
    """What to do besides the search."""

    controls: list[str] = field(
        default_factory=list, metadata={"help": f"Controls to train at every level: {', '.join(CONTROLS)}."}
    )
    plan: bool = field(
        default=False, metadata={"help": "Print what the search will cost (steps, disk, memory, time), and stop there."}
    )
    plan_shards: int | None = field(
        default=None,
        metadata={"help": "With plan: processes that weights, gradients and moments are divided among. Default: 1."},
    )
    plan_matching: bool = field(
        default=True,
        metadata={"help": "With plan: also what aligning costs, which takes a copy of the network in float64."},
    )

    def __post_init__(self) -> None:
        if unknown := set(self.controls) - CONTROLS.keys():
            raise ValueError(f"controls must be among {', '.join(CONTROLS)}; received {min(unknown)!r}.")
        if self.plan_shards is not None and self.plan_shards < 1:
            raise ValueError(f"plan_shards must be at least 1; received {self.plan_shards}.")


def main() -> None:
    """Run the recipe."""
    parser = RecipeParser([FindArguments, ModelArguments, DataArguments, LotteryArguments])
    find_args, model_args, data_args, args = parser.parse()
    if args.rewind == "pretrained" and model_args.model_name_or_path is None:
        parser.error("rewind=pretrained must be given a model_name_or_path; received none. Use rewind=init.")
    set_up(args)
    with args.main_process_first():
        data = load_task_data(model_args, data_args, model_args.load_config())
    model = build_model(model_args, data, args.seed)
    settings = asdict(model_args) | asdict(data_args)
    kind = LotteryTrainer if args.norm_interpolation is None else WinningSignTrainer
    # A Trainer makes its folder and its repository as soon as there is one; a plan must leave neither.
    with changed(args, output_dir=os.curdir, push_to_hub=False) if find_args.plan else nullcontext():
        trainer = kind(model=model, args=args, settings=settings, **trainer_arguments(model_args.task, data))
    logging.info("%s", trainer.weights)
    if find_args.plan:
        return print_plan(trainer, find_args)
    trainer.train(resume_from_checkpoint=True)
    path = trainer.norm_path() if isinstance(trainer, WinningSignTrainer) else []
    if args.should_save:
        folder = Path(args.output_dir)
        sections = search_sections(trainer, path, folder)
        write_report(folder / "report.html", sections, title=f"Ticket of {type(model).__name__}")
        print(f"\n{level_table(trainer.history)}\n\npicture: {folder / 'accuracy.png'}")
        print(f"report:  {folder / 'report.html'}\nticket:  {folder / 'ticket'}")
        if path:
            rows = [(f"{alpha:.2f}", f"{metrics[measure_of(metrics)]:.4f}") for alpha, metrics in path]
            print(f"\nThe network that the signs are of:\n{markdown_table(['norms towards init', 'eval'], rows)}")
    train_controls(find_args.controls, trainer, model_args, data)


def print_plan(trainer: LotteryTrainer, find_args: FindArguments) -> None:
    """Print what the search will cost."""
    report = {"report": search_report_bytes(isinstance(trainer, WinningSignTrainer))}
    plan = plan_search(trainer, shards=find_args.plan_shards, matching=find_args.plan_matching, others=report)
    if trainer.args.should_save:
        print(f"\nWhat the search will cost; nothing was trained, nothing was written.\n\n{plan}")
        if find_args.controls:
            print("\nNote: the controls are not counted; each trains every level but the first once more.")
