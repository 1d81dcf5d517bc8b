"""Train a saved ticket, or the controls that it must beat.

``--init ticket --mask ticket`` (the default) trains the lottery ticket. ``--init seed:7`` is the naive transfer to
another initialization. ``--init checkpoint:FOLDER --mask aligned --aligned FOLDER`` trains the mask that ``hf-lottery
align`` permuted. ``--mask random`` and ``--mask shuffled`` are controls that forget which weights were kept, and
``--mask none`` trains the dense network.

A ticket of "A Winning Sign" (Oh et al., 2025) has signs that can be given to a network of any seed:
``--init seed:7 --signs ticket``. Its controls are:

- no ``--signs``: the mask alone;
- ``--signs random`` and ``--signs shuffled``;
- ``--signs checkpoint:FOLDER``: the signs of a dense network;
- ``--keep_norms``: the ticket's norm parameters as well;
- ``--fold_norms``: the ticket's norm gains in the weights;
- ``--init ticket``: the ticket's own network, trained on.

``hf-lottery train`` runs it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, default_data_collator

from ...masks.mask import Mask
from ...pruning.mask_from_scores import prune
from ...pruning.scores import random_score, score_weights
from ...report import write_report
from ...signs.norm_folding import fold_norms_
from ...signs.norms import NormParameters, norm_parameters
from ...signs.signed_mask import ZEROS, SignAgreement, SignedMask
from ...structured import UnitMask, prune_units
from ...structured.unit_choices import shuffle_units
from ...symmetry.discovery import discover
from ..hub.difference import Difference
from ..hub.reference import Reference
from ..hub.ticket import Ticket
from ..hub.ticket_card import name_of
from ..tasks.data import Data, DataArguments, trainer_arguments
from ..tasks.example_inputs import example_inputs
from ..tasks.fit import check_fit
from ..tasks.loading import load_task_data
from ..tasks.models import ModelArguments, build_model, load_checkpoint, load_pretrained
from ..trainers.arguments import LotteryArguments
from ..trainers.sparse_trainer import SparseTrainer
from .launch import set_up
from .outcome import Outcome
from .parser import RecipeParser
from .report_sections import run_info, training_sections
from .ticket_defaults import tell_defaults, ticket_defaults

MASKS = ("ticket", "aligned", "random", "shuffled", "none")
SIGNS = ("none", "ticket", "shuffled", "random")


@dataclass
class TicketArguments:
    """Which ticket, and which parts of it to use."""

    ticket: str = field(metadata={"help": "Folder of the ticket, or of one level of a run."})
    init: str = field(
        default="ticket",
        metadata={"help": "Weights to start from: ticket, seed:N (a fresh initialization) or checkpoint:FOLDER."},
    )
    mask: str = field(default="ticket", metadata={"help": f"Mask to train under: {', '.join(MASKS)}."})
    aligned: str | None = field(default=None, metadata={"help": "Folder that align wrote, for mask=aligned."})
    signs: str = field(
        default="none",
        metadata={
            "help": "Signs to give to the weights: ticket (the signs of the ticket's own weights), shuffled (these, "
            "within each parameter), random, checkpoint:FOLDER (the signs of a trained network) or none."
        },
    )
    magnitudes: str = field(
        default="init",
        metadata={
            "help": "With signs: magnitudes of the weights: init, constant (the standard deviation of each parameter) "
            "or checkpoint:FOLDER."
        },
    )
    zeros: str = field(
        default="keep",
        metadata={
            "help": "With signs: what parameters that start at zero become: keep (they stay zero), std or "
            "source_median."
        },
    )
    keep_norms: bool = field(default=False, metadata={"help": "With signs: take the norm parameters of the ticket."})
    fold_norms: bool = field(
        default=False,
        metadata={"help": "With signs: first fold the ticket's norm gains into the linear layers that read them."},
    )
    first_step: int | None = field(
        default=None,
        metadata={
            "help": "Steps that the weights were already trained for. Default: those of the ticket with init=ticket, "
            "else 0."
        },
    )

    def __post_init__(self) -> None:
        kind, _, value = self.init.partition(":")
        if not (self.init == "ticket" or (kind == "seed" and value.isdecimal()) or (kind == "checkpoint" and value)):
            raise ValueError(f"init must be ticket, seed:N or checkpoint:FOLDER; received {self.init!r}.")
        if self.mask not in MASKS:
            raise ValueError(f"mask must be one of {', '.join(MASKS)}; received {self.mask!r}.")
        for name, words in (("signs", SIGNS), ("magnitudes", ("init", "constant"))):
            kind, _, folder = getattr(self, name).partition(":")
            if not (getattr(self, name) in words or (kind == "checkpoint" and folder)):
                words = ", ".join((*words, "checkpoint:FOLDER"))
                raise ValueError(f"{name} must be one of {words}; received {getattr(self, name)!r}.")
        self._check_signs()
        if (self.mask == "aligned") != (self.aligned is not None):
            raise ValueError(f"aligned must be given with mask=aligned; received {self.mask} and {self.aligned}.")

    def _check_signs(self) -> None:
        if self.zeros not in ZEROS:
            raise ValueError(f"zeros must be one of {', '.join(ZEROS)}; received {self.zeros!r}.")
        if self.signs == "none":
            changed = {"magnitudes": "init", "zeros": "keep", "keep_norms": False, "fold_norms": False}
            for name, value in changed.items():
                if getattr(self, name) != value:
                    raise ValueError(f"{name} must come with signs; received {getattr(self, name)!r} with signs=none.")
        elif self.mask != "ticket":
            raise ValueError(f"signs must come with mask=ticket, whose weights have them; received mask={self.mask}.")


def main(arguments: Sequence[str]) -> Outcome | None:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = RecipeParser([TicketArguments, ModelArguments, DataArguments, LotteryArguments], "train")
    ticket_args, model_args, data_args, args = parser.parse(arguments, given_by="ticket", read=ticket_defaults)
    set_up(args, ticket_args, model_args, data_args, fresh=True)
    tell_defaults(parser)
    ticket = Ticket.from_pretrained(ticket_args.ticket)
    with args.main_process_first():
        data = load_task_data(model_args, data_args, model_args.load_config())
    model = start_weights(ticket_args.init, ticket, model_args, data, args.seed)
    check_fit(model, data, args)
    signed = agreement = None
    if ticket_args.signs != "none":
        source = signs_source(ticket_args, ticket, model_args, data, args.seed)
        norms = norm_parameters(source, include=args.norm_include, exclude=args.norm_exclude)
        signed = SignedMask.from_model(source, ticket.mask, norms=norms)
        signed = choose_signs(ticket_args.signs, signed, args.seed)
        give_signs(ticket_args, signed, model, norms, model_args.task)
    first_step = ticket.start.step if ticket_args.init == "ticket" else 0
    trainer = SparseTrainer(
        model=model,
        args=args,
        mask=choose_mask(ticket_args, ticket.mask, model, args.seed),
        first_step=first_step if ticket_args.first_step is None else ticket_args.first_step,
        **trainer_arguments(model_args.task, data),
    )
    asked = args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if str(asked).lower() == "true" else asked)
    metrics = trainer.evaluate()
    if signed is not None:
        agreement = signed.agreement(model)
        metrics["sign_agreement"] = agreement.overall
    trainer.save_model()
    trainer.save_metrics("eval", metrics)
    info = run_info(["hf-lottery", "train", *arguments], args, ticket_args, model_args, data_args)
    return show_training(ticket_args, trainer, metrics, agreement, info) if args.should_save else None


def show_training(
    ticket_args: TicketArguments,
    trainer: SparseTrainer,
    metrics: dict[str, float],
    agreement: SignAgreement | None,
    info: Mapping[str, Any],
) -> Outcome:
    """Write the page of a training, and return its metrics.

    Args:
        ticket_args: What was trained.
        trainer: The trainer of the finished training.
        metrics: Its metrics on the test data.
        agreement: How far the network kept the signs that it was given, if it was given any.
        info: What is known of the run.
    """
    folder, model = Path(str(trainer.args.output_dir)), cast(nn.Module, trainer.model)
    sparsity = trainer.mask.sparsity if trainer.mask else 0.0
    sections = training_sections(info, metrics, trainer.mask, model, agreement, folder)
    write_report(folder / "report.html", sections, title=f"Training of {name_of(type(model).__name__, info)}")
    lines = [f"\ninit={ticket_args.init} mask={ticket_args.mask} sparsity={sparsity:.4f}"]
    lines += [f"{name} = {value:.4f}" for name, value in metrics.items()]
    facts = {"model": folder, "report": folder / "report.html", "sparsity": sparsity, "metrics": metrics}
    return Outcome(facts, text="\n".join([*lines, f"report: {folder / 'report.html'}"]))


def start_weights(init: str, ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> PreTrainedModel:
    """Build the model at the weights that ``init`` names.

    Args:
        init: "ticket", "seed:N" or "checkpoint:FOLDER".
        ticket: The ticket.
        model_args: The network.
        data: What it trains on.
        seed: Draws what the ticket does not hold.
    """
    kind, _, value = init.partition(":")
    if kind == "checkpoint":
        return load_checkpoint(value, model_args.task)
    if kind == "seed":
        model = build_model(model_args, data, int(value), fresh=True)
    else:
        model = _ticket_weights(ticket, model_args, data, seed)
    if ticket.generation_config is not None:
        model.generation_config = ticket.generation_config
    return model


def _ticket_weights(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> PreTrainedModel:
    start = ticket.start
    place = start.base(ticket.info.get("base_model")) if isinstance(start, Difference) else start
    if isinstance(place, Reference) and place.repo_id is not None:
        model = load_pretrained(place.repo_id, model_args.task, revision=place.revision)
    else:
        own = place.seed if isinstance(place, Reference) else None
        model = build_model(model_args, data, seed if own is None else own)
    start.restore_(model)
    return model


def signs_source(
    ticket_args: TicketArguments, ticket: Ticket, model_args: ModelArguments, data: Data, seed: int
) -> PreTrainedModel:
    """Build the network that signs and norms are taken from: the ticket's own weights, or a checkpoint."""
    origin = ticket_args.signs if ticket_args.signs.startswith("checkpoint:") else "ticket"
    source = start_weights(origin, ticket, model_args, data, seed)
    if ticket_args.fold_norms:
        batch = default_data_collator([data.train[i] for i in range(2)])
        folded = fold_norms_(source, batch)
        logging.info("folded: %s", ", ".join(folded))
    return source


def choose_signs(name: str, signed: SignedMask, seed: int) -> SignedMask:
    """Choose the signs themselves, or a control: shuffled or random ones."""
    if name == "shuffled":
        return signed.shuffled(seed)
    return signed.randomized(seed) if name == "random" else signed


def give_signs(
    ticket_args: TicketArguments,
    signed: SignedMask,
    model: PreTrainedModel,
    norms: NormParameters,
    task: str,
) -> None:
    """Give signs to the weights to start from, and log which parameters got none.

    Args:
        ticket_args: Which magnitudes, and whether to take the norms of the ticket.
        signed: The signs.
        model: The network that gets them.
        norms: The norm parameters of the ticket.
        task: What the network is for.
    """
    magnitudes: Any = ticket_args.magnitudes
    if magnitudes.startswith("checkpoint:"):
        magnitudes = load_checkpoint(magnitudes.partition(":")[2], task)
    report = signed.transfer_(model, magnitudes=magnitudes, zeros=ticket_args.zeros)
    logging.info("%d parameters signed; zero, so without a sign: %s", len(report.signed), report.zero or "none")
    if ticket_args.keep_norms:
        with torch.no_grad():
            for name, trained in norms.items():
                model.get_parameter(name).copy_(trained)


def choose_mask(ticket_args: TicketArguments, mask: Mask, model: PreTrainedModel, seed: int) -> Mask | None:
    """Choose the ticket's mask, the aligned mask, or a control; None trains the dense network.

    Args:
        ticket_args: Which mask.
        mask: The ticket's own.
        model: The network that is trained, whose units the controls of a structured ticket draw.
        seed: Draws the controls.
    """
    name = ticket_args.mask
    if ticket_args.aligned:
        return UnitMask.load_any(ticket_args.aligned)
    if name == "none":
        return None
    if name == "ticket":
        return mask
    if isinstance(mask, UnitMask):
        return random_units(name, mask, model, seed)
    if name == "shuffled":
        return mask.shuffled(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        zeros = {parameter: torch.zeros(entry.shape) for parameter, entry in mask.items()}
        return prune(score_weights(zeros, random_score), mask.sparsity)


def random_units(name: str, mask: UnitMask, model: PreTrainedModel, seed: int) -> UnitMask:
    """Draw other units for a structured ticket.

    Args:
        name: "shuffled" keeps as many units of each group, "random" as many of all groups together.
        mask: The ticket's own units.
        model: The network.
        seed: Draws them.
    """
    spec = discover(model, example_inputs(model))
    if name == "shuffled":
        return shuffle_units(mask, spec, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    zeros = {parameter: torch.zeros(entry.shape) for parameter, entry in mask.items()}
    return prune_units(
        model,
        spec,
        zeros,
        sparsity=mask.unit_sparsity,
        reduce=lambda scores: torch.rand(scores.shape[:-1], generator=generator),
        include=list(mask.units),
    )
