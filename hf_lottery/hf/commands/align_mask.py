"""Align a ticket's mask to a network of another seed.

The command finds which axes of the network may be permuted (``discover``, verified on the network itself), matches the
dense trained ``source_model`` that the ticket comes from to the dense trained ``target_model``, and writes the permuted
mask, the permutation, and a table and a picture of the match. Then ``hf-lottery train`` with ``--init checkpoint:...
--mask aligned --aligned outputs/aligned`` trains the mask on the network of the other seed. ``hf-lottery align`` runs
the command.

Reference: Adnan et al., 2025, arXiv:2505.05143.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, Trainer

from ...alignment.match import Match
from ...alignment.matching import activation_matching, weight_matching
from ...masks.mask import Mask
from ...report.bars import plot_match
from ...structured import UnitMask
from ...symmetry.discovery import discover
from ...symmetry.spec import PermutationSpec
from ..tasks.batches import example_batch, training_batches
from ..tasks.data import DataArguments, trainer_arguments
from ..tasks.fit import check_fit
from ..tasks.loading import load_task_data
from ..tasks.models import ModelArguments, load_network
from ..trainers.arguments import LotteryArguments
from .launch import set_up
from .outcome import Outcome
from .parser import RecipeParser
from .ticket_defaults import tell_defaults, ticket_defaults

# How units are matched, and what the score of a match is.
METHODS = {"weight": "cosine similarity of weights", "activation": "mean correlation of units"}


@dataclass
class AlignArguments:
    """Which mask to align to which network."""

    ticket: str = field(metadata={"help": "Folder of the ticket or mask to align."})
    target_model: str = field(metadata={"help": "Folder of the dense trained network of the other seed."})
    source_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the dense trained network that the ticket comes from. Default: level-00/trained "
            "beside the ticket."
        },
    )
    method: str = field(
        default="weight",  # in docs/results.md the best for masks, or not told from the best
        metadata={"help": f"How units are matched: {', '.join(METHODS)}. Only activations need data."},
    )
    match_batches: int = field(default=32, metadata={"help": "Number of training batches to match activations on."})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; received {self.method!r}.")
        if self.match_batches < 1:
            raise ValueError(f"match_batches must be at least 1; received {self.match_batches}.")


def main(arguments: Sequence[str]) -> Outcome | None:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = RecipeParser([AlignArguments, ModelArguments, DataArguments, LotteryArguments], "align")
    align, model_args, data_args, args = parser.parse(arguments, given_by="ticket", read=ticket_defaults)
    set_up(args, align, model_args, data_args, fresh=True)
    tell_defaults(parser)
    mask = UnitMask.load_any(align.ticket)
    source = load_network(align.source_model or str(Path(align.ticket).parent / "level-00/trained"), model_args.task)
    target = load_network(align.target_model, model_args.task)
    mask.check_fits(source)
    with args.main_process_first():
        data = load_task_data(model_args, data_args, model_args.load_config())
    for network in (source, target):
        check_fit(network, data, args)
    trainer = Trainer(model=target, args=args, **trainer_arguments(model_args.task, data))
    source.to(args.device)
    spec = discover(source, example_batch(trainer))
    logging.info("%s", spec)
    found = match_networks(align.method, spec, source, target, trainer, align.match_batches)
    if not args.should_save:
        return None
    return write_aligned(mask, found, align.method, type(source).__name__, Path(args.output_dir))


def match_networks(
    method: str,
    spec: PermutationSpec,
    source: PreTrainedModel,
    target: PreTrainedModel,
    trainer: Trainer,
    match_batches: int,
    *,
    residual: bool | None = None,
) -> Match:
    """Find the permutation that carries one network to another; every process gets what the first one found.

    Args:
        method: "weight" or "activation".
        spec: The symmetries of the two networks.
        source: The network to permute.
        target: The network to match it to.
        trainer: Has the data and the seed.
        match_batches: How many training batches activations are matched on.
        residual: Whether to match residual streams too, as for the matchings.
    """
    pair: dict[str, Any] = {"source": source, "target": target, "seed": trainer.args.seed, "residual": residual}
    if method == "weight":
        found = weight_matching(spec, **pair)
    else:
        samples = match_batches * trainer.args.per_device_train_batch_size
        found = activation_matching(spec, batches=training_batches(trainer, samples), **pair)
    return broadcast_object_list([found])[0]


def write_aligned(mask: Mask, found: Match, method: str, network: str, folder: Path) -> Outcome:
    """Write the permuted mask, the match and a picture of it to a folder, and return a table.

    Args:
        mask: The mask as it was found.
        found: What the matching returned.
        method: How the units were matched.
        network: Name of the network's class, for the title of the picture.
        folder: Where to write.
    """
    aligned, spec = found.permutation(mask), found.permutation.spec
    origin = {"parents": [mask.sha256()], "permutation": {"spec": spec.fingerprint, "method": method}}
    found.save_pretrained(folder / "permutation")
    overlap = aligned.overlap(mask)
    picture = folder / "match.png"
    plot_match(picture, found, score=METHODS[method], title=network)
    groups = {name: asdict(group) for name, group in found.report.groups.items()}
    facts = {"mask": folder, "permutation": folder / "permutation", "picture": picture, "groups": groups}
    facts |= {"overlap": overlap.iou, "chance": overlap.chance}
    aligned.save_pretrained(folder, info=origin)  # last: a folder with a mask is finished
    places = f"aligned mask: {folder}\npicture: {picture}"
    before = f"overlap with the mask before: {overlap.iou:.3f} (chance {overlap.chance:.3f})"
    return Outcome(facts, text=f"\n{found.report}\n\n{before}\n{places}")
