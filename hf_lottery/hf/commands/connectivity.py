"""See whether two trained networks lie in the same basin, before and after one is aligned to the other.

The command measures the error on the straight line between the networks on the test data, with batch norms
recalibrated at every point, and once more after ``a`` was permuted to match ``b``. If both folders hold masks, their
overlap is measured too. It writes ``report.html`` with its pictures and numbers, and the permutation. ``hf-lottery
connect`` runs it.

References:
    Frankle et al., 2020, arXiv:1912.05671. Ainsworth et al., 2023, "Git Re-Basin", arXiv:2209.04836.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer

from ...alignment.match import Match
from ...connectivity.barrier import Barrier, error_barrier
from ...masks.mask import Mask
from ...report import write_report
from ...storage.atomic import write_atomically
from ...symmetry.discovery import discover
from ...symmetry.permutation import permute_
from ..hub.ticket_card import name_of
from ..tasks.batches import example_batch
from ..tasks.data import DataArguments, trainer_arguments
from ..tasks.fit import check_fit
from ..tasks.judge import Judge
from ..tasks.loading import load_task_data
from ..tasks.models import ModelArguments, load_network
from ..trainers.arguments import LotteryArguments
from .align_mask import METHODS, match_networks
from .launch import set_up
from .outcome import Outcome
from .parser import RecipeParser
from .report_sections import match_sections, overlap_sections, path_sections, run_info
from .ticket_defaults import network_defaults, tell_defaults

ALIGN = (*METHODS, "none")


@dataclass
class ConnectivityArguments:
    """Which networks, and how to align them."""

    a: str = field(
        metadata={
            "help": "Folder or repository of a network, such as level-01/trained of a search, with or without a mask, "
            "or of a ticket."
        }
    )
    b: str = field(metadata={"help": "Folder or repository of another network of the same architecture."})
    align: str = field(default="activation", metadata={"help": f"How a is matched to b: {', '.join(ALIGN)}."})
    points: int = field(default=11, metadata={"help": "Number of networks on the line, the two ends included."})
    match_batches: int = field(default=32, metadata={"help": "Number of training batches to match activations on."})
    recalibration_sample: int = field(
        default=512, metadata={"help": "Number of training samples that batch norms are recalibrated on."}
    )

    def __post_init__(self) -> None:
        if self.align not in ALIGN:
            raise ValueError(f"align must be one of {', '.join(ALIGN)}; received {self.align!r}.")
        for name, least in (("points", 2), ("match_batches", 1), ("recalibration_sample", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; received {getattr(self, name)}.")


def main(arguments: Sequence[str]) -> Outcome | None:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = RecipeParser([ConnectivityArguments, ModelArguments, DataArguments, LotteryArguments], "connect")
    which, model_args, data_args, args = parser.parse(arguments, given_by="a", read=network_defaults)
    set_up(args, which, model_args, data_args, fresh=True)
    tell_defaults(parser)
    a, b = (load_network(folder, model_args.task) for folder in (which.a, which.b))
    masks = [mask for source in (which.a, which.b) if (mask := find_mask(source)) is not None]
    with args.main_process_first():
        data = load_task_data(model_args, data_args, model_args.load_config())
    for network in (a, b):
        check_fit(network, data, args)
    trainer = Trainer(model=a, args=args, **trainer_arguments(model_args.task, data))
    b.to(args.device)
    judge = Judge(trainer, model_args.task, which.recalibration_sample)
    barriers = {"as they were": error_barrier(a, b, judge, points=which.points)}
    found = align(which, a, b, trainer)
    if found is not None:
        permute_(a, found.permutation)
        barriers[f"aligned by {which.align}"] = error_barrier(a, b, judge, points=which.points)
    if not args.should_save:
        return None
    info = run_info(["hf-lottery", "connect", *arguments], args, which, model_args, data_args)
    folder, name = Path(args.output_dir), name_of(type(a).__name__, info)
    folder.mkdir(parents=True, exist_ok=True)
    sections = path_sections(barriers, judge.word, name, info, folder)
    if found is not None:
        sections += match_sections(found, METHODS[which.align], name, folder)
        found.save_pretrained(folder / "permutation")
    if len(masks) == 2:
        sections += overlap_sections(masks[0], masks[1], found, name, folder)
    results = write_results(folder / "connectivity.json", barriers)
    write_report(page := folder / "report.html", sections, title=f"Connectivity of {name}")
    lines = "\n".join(f"barrier {label}: {found.barrier:.4f}" for label, found in barriers.items())
    return Outcome({"report": page, "barriers": results}, text=f"\n{lines}\nreport: {page}")


def find_mask(source: str) -> Mask | None:
    """Load the mask that lies beside a network; None if there is none."""
    try:
        return Mask.from_pretrained(source)
    except FileNotFoundError:
        return None


def align(which: ConnectivityArguments, a: PreTrainedModel, b: PreTrainedModel, trainer: Trainer) -> Match | None:
    """Match ``a`` to ``b``; None if the user asked for no alignment."""
    if which.align == "none":
        return None
    return match_networks(which.align, discover(a, example_batch(trainer)), a, b, trainer, which.match_batches)


def write_results(file: Path, barriers: dict[str, Barrier]) -> dict[str, Any]:
    """Write the barriers with their errors as JSON, and return them so."""
    results = {label: {"barrier": found.barrier, "errors": list(found.errors)} for label, found in barriers.items()}
    write_atomically(file, (json.dumps(results, indent=2) + "\n").encode())
    return results
