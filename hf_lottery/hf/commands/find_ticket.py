"""Find a lottery ticket: levels of train, prune and rewind on any image classifier, text classifier or causal LM.

With ``norm_interpolation`` in the settings the search is that of "A Winning Sign" (Oh et al., 2025), and the signs of
its ticket can be given to a network of any seed. A run that was stopped goes on where it stopped. The ticket is in
``output_dir/ticket``, and ``output_dir/report.html`` shows it. ``--compare 5`` trains the ticket, the dense network, a
random mask and a re-initialised network five times each, and ends with a table of them. With ``--plan`` nothing is
trained and nothing written: the command prints what the search will cost. ``hf-lottery find`` runs it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...report import level_table, markdown_table, write_report
from ..hub.about import changed_settings, command_line
from ..hub.ticket_card import name_of
from ..plan import plan_search
from ..tasks.data import DataArguments, trainer_arguments
from ..tasks.fit import check_fit
from ..tasks.loading import load_task_data
from ..tasks.models import ModelArguments, build_model
from ..trainers.arguments import LotteryArguments
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.sparse_trainer import changed
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .comparison import Comparison, check_comparison, compare
from .controls import CONTROLS, STARTS, train_controls
from .launch import set_up
from .outcome import Outcome
from .parser import RecipeParser
from .report_sections import NormPath, measure_of, search_report_bytes, search_sections


@dataclass
class FindArguments:
    """What to do besides the search."""

    controls: list[str] = field(
        default_factory=list, metadata={"help": f"Controls to train at every level: {', '.join(CONTROLS)}."}
    )
    compare: int = field(
        default=0,
        metadata={
            "help": "How often to train each of dense, ticket, random mask and re-initialised for the comparison at "
            "the end. 0: no comparison."
        },
    )
    plan: bool = field(
        default=False, metadata={"help": "Print what the search will cost (steps, disk, memory, time), and stop."}
    )
    plan_shards: int | None = field(
        default=None,
        metadata={
            "help": "With plan: number of processes that weights, gradients and moments are divided among. Default: 1."
        },
    )
    plan_matching: bool = field(
        default=True,
        metadata={"help": "With plan: print also what aligning costs, which needs a copy of the network in float64."},
    )

    def __post_init__(self) -> None:
        if unknown := set(self.controls) - set(CONTROLS):
            raise ValueError(f"controls must be among {', '.join(CONTROLS)}; received {min(unknown)!r}.")
        if self.compare < 0 or self.compare == 1:
            raise ValueError(f"compare must be 0, or at least 2 for an interval; received {self.compare}.")
        if self.plan_shards is not None and self.plan_shards < 1:
            raise ValueError(f"plan_shards must be at least 1; received {self.plan_shards}.")


def main(arguments: Sequence[str]) -> Outcome | None:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = RecipeParser([FindArguments, ModelArguments, DataArguments, LotteryArguments], "find")
    find_args, model_args, data_args, args = parser.parse(arguments)
    if args.rewind == "pretrained" and model_args.model_name_or_path is None:
        parser.error("rewind=pretrained must be given a model_name_or_path; received none. Use rewind=init.")
    set_up(args, model_args, data_args, writes=not find_args.plan)
    with args.main_process_first():
        data = load_task_data(model_args, data_args, model_args.load_config())
    model = build_model(model_args, data, args.seed)
    check_fit(model, data, args)
    settings = asdict(model_args) | asdict(data_args)
    kind = LotteryTrainer if args.norm_interpolation is None else WinningSignTrainer
    # A Trainer makes its folder and its repository when it is made; a plan must leave neither.
    with changed(args, output_dir=os.curdir, push_to_hub=False) if find_args.plan else nullcontext():
        trainer = kind(model=model, args=args, settings=settings, **trainer_arguments(model_args.task, data))
    trainer.about["command"] = command_line(["hf-lottery", "find", *arguments])
    trainer.about["changed"] = changed_settings(settings, ModelArguments, DataArguments)
    if find_args.compare:
        check_comparison(trainer)
    logging.info("%s", trainer.weights)
    if find_args.plan:
        return show_plan(trainer, find_args)
    trainer.train(resume_from_checkpoint=True)
    path = trainer.norm_path() if isinstance(trainer, WinningSignTrainer) else []
    train_controls(find_args.controls, trainer, model_args, data)
    comparison = compare(find_args.compare, trainer, model_args, data) if find_args.compare else None
    if comparison is not None:
        trainer.add_to_ticket(comparison=comparison.for_ticket)
    return show_ticket(trainer, path, comparison, Path(args.output_dir)) if args.should_save else None


def show_ticket(trainer: LotteryTrainer, path: NormPath, comparison: Comparison | None, folder: Path) -> Outcome:
    """Write the page of a search, and return its levels and the comparison.

    Args:
        trainer: The trainer of the finished search.
        path: The metrics on the way from the trained norm parameters to their initial values, in a search for signs.
        comparison: The ticket beside its controls, if they were compared.
        folder: Where to write.
    """
    sections = search_sections(trainer, path, folder)
    facts = {"ticket": folder / "ticket", "report": folder / "report.html", "levels": trainer.history}
    name = name_of(type(trainer.network).__name__, trainer.ticket.info)
    write_report(folder / "report.html", sections, title=f"Ticket of {name}")
    texts = [
        f"\n{level_table(trainer.history)}",
        f"picture: {folder / 'accuracy.png'}\nreport:  {folder / 'report.html'}\nticket:  {folder / 'ticket'}",
    ]
    if path:
        rows = [(f"{alpha:.2f}", f"{metrics[measure_of(metrics)]:.4f}") for alpha, metrics in path]
        texts.append(f"The network that has the signs:\n{markdown_table(['norms towards init', 'eval'], rows)}")
        facts["norm_path"] = [{"alpha": alpha, **metrics} for alpha, metrics in path]
    if comparison is not None:
        texts += [markdown_table(*comparison.table), f"{comparison.conclusion}\n{comparison.explanation}"]
        facts["comparison"] = {"measure": comparison.measure, **{k: v.tolist() for k, v in comparison.values.items()}}
    return Outcome(facts, text="\n\n".join(texts))


def show_plan(trainer: LotteryTrainer, find_args: FindArguments) -> Outcome | None:
    """Compute what the search will cost; every process must call this."""
    report = {"report": search_report_bytes(isinstance(trainer, WinningSignTrainer))}
    plan = plan_search(trainer, shards=find_args.plan_shards, matching=find_args.plan_matching, others=report)
    if not trainer.args.should_save:
        return None
    texts = ["\nWhat the search will cost; nothing was trained, nothing was written.", str(plan)]
    if find_args.controls:
        texts.append("Note: the controls are not counted; each trains every level but the first once more.")
    if find_args.compare:
        more = len(STARTS) * find_args.compare
        texts.append(f"Note: the comparison is not counted; it trains {more} more networks as long as the last level.")
    return Outcome({"plan": asdict(plan)}, text="\n\n".join(texts))
