"""Align a ticket's mask to a network of another seed.

    accelerate launch recipes/align_mask.py --config recipes/digits/imp.yaml --ticket outputs/digits-imp/ticket \\
        --source_model outputs/digits-imp/level-00/trained --target_model outputs/dense-7 --method activation \\
        --output_dir outputs/aligned

Finds which axes of the network may be permuted (``discover``, verified on the network itself), matches the dense
trained ``source_model`` that the ticket comes from to the dense trained ``target_model``, and writes the permuted mask,
the permutation and a table of the match. Then ``train_ticket.py --init checkpoint:... --mask aligned --aligned
outputs/aligned`` trains it on the target's seed.

Reference: Adnan et al., 2025, arXiv:2505.05143.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, Trainer

from ...alignment.matching import activation_matching, weight_matching
from ...masks.mask import Mask
from ...report import plot_match
from ...symmetry.discovery import discover
from ...symmetry.permutation import Permutation
from ...symmetry.spec import PermutationSpec
from ..commands.parser import RecipeParser
from ..hub.ticket import Ticket
from ..tasks.batches import example_batch, training_batches
from ..tasks.data import DataArguments
from ..trainers.arguments import LotteryArguments
from .common import AUTO_MODELS, ModelArguments, load_task_data, set_up, trainer_arguments

METHODS = ("activation", "weight")


@dataclass
class AlignArguments:
    """What to align to what."""

    ticket: str = field(metadata={"help": "Folder of the ticket or mask to align."})
    target_model: str = field(metadata={"help": "Folder of the dense trained network of the other seed."})
    source_model: str | None = field(
        default=None,
        metadata={"help": "Folder of the dense trained network the ticket comes from. Default: beside the ticket."},
    )
    method: str = field(default="activation", metadata={"help": f"Matching: {', '.join(METHODS)}."})
    match_batches: int = field(default=32, metadata={"help": "Training batches to match activations on."})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; received {self.method!r}.")
        if self.match_batches < 1:
            raise ValueError(f"match_batches must be at least 1; received {self.match_batches}.")


def main() -> None:
    """Run the recipe."""
    parser = RecipeParser([AlignArguments, ModelArguments, DataArguments, LotteryArguments])
    align, model_args, data_args, args = parser.parse()
    set_up(args)
    mask = Mask.from_pretrained(align.ticket)
    source = load_network(align.source_model or str(Path(align.ticket).parent / "level-00/trained"), model_args.task)
    target = load_network(align.target_model, model_args.task)
    mask.check_fits(source)
    with args.main_process_first():
        data = load_task_data(model_args, data_args, model_args.load_config())
    trainer = Trainer(model=target, args=args, **trainer_arguments(model_args.task, data))
    source.to(args.device)
    spec = discover(source, example_batch(trainer))
    logging.info("%s", spec)
    permutation = match(align.method, spec, source, target, trainer, align.match_batches)
    aligned = permutation(mask)
    if args.should_save:
        folder = Path(args.output_dir)
        carried = {"parents": [mask.sha256()], "permutation": {"spec": spec.fingerprint, "method": align.method}}
        aligned.save_pretrained(folder, info=carried)
        permutation.save_pretrained(folder / "permutation")
        overlap = aligned.overlap(mask)
        print(
            f"\n{permutation.report}\n\noverlap with the mask before: {overlap.iou:.3f} (chance {overlap.chance:.3f})"
        )
        scores = {name: (group.identity, group.matched) for name, group in permutation.report.groups.items()}
        score = "correlation" if align.method == "activation" else "inner product"
        plot_match(folder / "match.png", scores, score=f"mean {score} of units", title=type(source).__name__)
        print(f"aligned mask: {folder}\npicture: {folder / 'match.png'}")


def load_network(source: str, task: str) -> PreTrainedModel:
    """A network from its folder or repository, or the one that the ticket there starts from."""
    try:
        return AUTO_MODELS[task].from_pretrained(source)
    except OSError as missing:  # a ticket has a configuration, but its weights are called otherwise
        try:
            ticket = Ticket.from_pretrained(source)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"a network must be a folder or repository of a model or ticket; received {source}: {missing}"
            ) from missing
    model = AUTO_MODELS[task].from_config(ticket.model_config)
    ticket.apply_(model)
    return model


def match(
    method: str,
    spec: PermutationSpec,
    source: PreTrainedModel,
    target: PreTrainedModel,
    trainer: Trainer,
    match_batches: int,
) -> Permutation:
    """The permutation that carries ``source`` to ``target``, on every process that of the first."""
    pair: dict[str, Any] = {"source": source, "target": target, "seed": trainer.args.seed}
    if method == "weight":
        found = weight_matching(spec, **pair)
    else:
        samples = match_batches * trainer.args.per_device_train_batch_size
        found = activation_matching(spec, batches=training_batches(trainer, samples), **pair)
    return broadcast_object_list([found])[0]
