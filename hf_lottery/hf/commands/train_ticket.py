"""Train a saved ticket, or the controls it must beat.

    accelerate launch recipes/train_ticket.py --config recipes/digits/imp.yaml --ticket outputs/digits-imp/ticket \\
        --output_dir outputs/digits-lth

``--init ticket --mask ticket`` (the default) is the lottery-ticket run; ``--init seed:7`` the naive transfer to another
initialization; ``--init checkpoint:FOLDER --mask aligned --aligned FOLDER`` the permuted one (see align_mask.py);
``--mask random`` and ``--mask shuffled`` forget which weights, ``--mask none`` trains dense.

A ticket of AWS (see find_ticket.py) wins from any seed with its signs:

    accelerate launch recipes/train_ticket.py --config recipes/digits/aws.yaml --ticket outputs/digits-aws/ticket \\
        --init seed:7 --signs ticket --output_dir outputs/digits-sign-transfer

Its controls: no ``--signs`` (mask only), ``--signs random``, ``--signs shuffled``, ``--signs checkpoint:FOLDER`` (a
dense network's), ``--keep_norms`` (the ticket's norms as well), ``--fold_norms`` (its norm gains in the weights), and
``--init ticket``, its network trained on.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, default_data_collator

from ...masks.mask import Mask
from ...pruning.mask_from_scores import prune
from ...pruning.scores import random, score_weights
from ...report import write_report
from ...signs.norm_folding import fold_norms_
from ...signs.norms import NormParameters, norm_parameters
from ...signs.signed_mask import ZEROS, SignedMask
from ..commands.parser import RecipeParser
from ..hub.reference import Reference
from ..hub.ticket import Ticket
from ..tasks.data import Data, DataArguments
from ..trainers.arguments import LotteryArguments
from ..trainers.sparse_trainer import SparseTrainer
from .common import AUTO_MODELS, ModelArguments, build_model, load_task_data, set_up, trainer_arguments
from .report_sections import training_sections

MASKS = ("ticket", "aligned", "random", "shuffled", "none")
SIGNS = ("none", "ticket", "shuffled", "random")


@dataclass
class TicketArguments:
    """Which ticket, and what of it."""

    ticket: str = field(metadata={"help": "Folder of the ticket, or of one level of a run."})
    init: str = field(
        default="ticket",
        metadata={"help": "Weights to start from: ticket, seed:N (a fresh initialization) or checkpoint:FOLDER."},
    )
    mask: str = field(default="ticket", metadata={"help": f"One of {', '.join(MASKS)}."})
    aligned: str | None = field(default=None, metadata={"help": "Folder that align_mask.py wrote, for mask=aligned."})
    signs: str = field(
        default="none",
        metadata={
            "help": "Signs that the weights to start from are given: ticket, those of the ticket's own weights; "
            "shuffled within each parameter; random; checkpoint:FOLDER, those of a trained network; or none."
        },
    )
    magnitudes: str = field(
        default="init",
        metadata={"help": "With signs, the magnitudes: init, constant (standard deviation) or checkpoint:FOLDER."},
    )
    zeros: str = field(
        default="keep",
        metadata={"help": "With signs, parameters that start at zero: keep them, or std, or source_median."},
    )
    keep_norms: bool = field(default=False, metadata={"help": "With signs, take the norm parameters of the ticket."})
    fold_norms: bool = field(
        default=False,
        metadata={"help": "With signs, fold the ticket's norm gains into the linear layers that read them first."},
    )
    first_step: int | None = field(
        default=None,
        metadata={"help": "Steps that lie behind the weights. Default: the ticket's with init=ticket, else 0."},
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
        if self.zeros not in ZEROS:
            raise ValueError(f"zeros must be one of {', '.join(ZEROS)}; received {self.zeros!r}.")
        if self.signs == "none":
            changed = {"magnitudes": "init", "zeros": "keep", "keep_norms": False, "fold_norms": False}
            for name, value in changed.items():
                if getattr(self, name) != value:
                    raise ValueError(f"{name} must come with signs; received {getattr(self, name)!r} with signs=none.")
        elif self.mask != "ticket":
            raise ValueError(f"signs must come with mask=ticket, which they are of; received mask={self.mask}.")
        if (self.mask == "aligned") != (self.aligned is not None):
            raise ValueError(f"aligned must be given with mask=aligned; received {self.mask} and {self.aligned}.")


def main() -> None:
    """Run the recipe."""
    parser = RecipeParser([TicketArguments, ModelArguments, DataArguments, LotteryArguments])
    ticket_args, model_args, data_args, args = parser.parse()
    set_up(args)
    for name in ("lottery_state.json", "rewind.safetensors"):
        if (Path(args.output_dir) / name).exists():
            parser.error(f"output_dir must not hold a ticket or a search; received {args.output_dir}. Choose another.")
    ticket = Ticket.from_pretrained(ticket_args.ticket)
    with args.main_process_first():
        data = load_task_data(model_args, data_args, model_args.load_config())
    model = start_weights(ticket_args.init, ticket, model_args, data, args.seed)
    signed = agreement = None
    if ticket_args.signs != "none":
        source = signs_source(ticket_args, ticket, model_args, data, args.seed)
        norms = norm_parameters(source, include=args.norm_include, exclude=args.norm_exclude)
        signed = SignedMask.from_model(source, ticket.mask, norms=norms)
        signed = choose_signs(ticket_args.signs, signed, args.seed)
        give_signs(ticket_args, signed, model, norms, model_args)
    first_step = ticket.start.step if ticket_args.init == "ticket" else 0
    trainer = SparseTrainer(
        model=model,
        args=args,
        mask=choose_mask(ticket_args, ticket.mask, args.seed),
        first_step=first_step if ticket_args.first_step is None else ticket_args.first_step,
        **trainer_arguments(model_args.task, data),
    )
    trainer.train()
    metrics = trainer.evaluate()
    if signed is not None:
        agreement = signed.agreement(model)
        metrics["sign_agreement"] = agreement.overall
    trainer.save_model()
    trainer.save_metrics("eval", metrics)
    if args.should_save:
        sparsity = trainer.mask.sparsity if trainer.mask else 0.0
        print(f"\ninit={ticket_args.init} mask={ticket_args.mask} sparsity={sparsity:.4f}")
        print("\n".join(f"{name} = {value:.4f}" for name, value in metrics.items()))
        folder = Path(args.output_dir)
        about = {"model": type(model).__name__, "sparsity": f"{sparsity:.4f}", **asdict(ticket_args)}
        sections = training_sections(about, metrics, trainer.mask, model, agreement, folder)
        write_report(folder / "report.html", sections, title=f"Training of {type(model).__name__}")
        print(f"report: {folder / 'report.html'}")


def start_weights(init: str, ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> PreTrainedModel:
    """The model at the weights that ``init`` names."""
    kind, _, value = init.partition(":")
    if kind == "checkpoint":
        return load_checkpoint(value, model_args)
    rewind = ticket.start
    if kind == "ticket" and isinstance(rewind, Reference) and rewind.repo_id is not None:
        model = AUTO_MODELS[model_args.task].from_pretrained(rewind.repo_id, revision=rewind.revision)
    elif kind == "ticket":
        own = rewind.seed if isinstance(rewind, Reference) else None
        model = build_model(model_args, data, seed if own is None else own)
    else:
        model = build_model(model_args, data, int(value), fresh=True)
    if kind == "ticket":
        rewind.restore_(model)
    return model


def signs_source(
    ticket_args: TicketArguments, ticket: Ticket, model_args: ModelArguments, data: Data, seed: int
) -> PreTrainedModel:
    """The network that signs and norms are of: the ticket's own weights, or a checkpoint."""
    origin = ticket_args.signs if ticket_args.signs.startswith("checkpoint:") else "ticket"
    source = start_weights(origin, ticket, model_args, data, seed)
    if ticket_args.fold_norms:
        batch = default_data_collator([data.train[i] for i in range(2)])
        folded = fold_norms_(source, batch)
        logging.info("folded: %s", ", ".join(folded))
    return source


def choose_signs(name: str, signed: SignedMask, seed: int) -> SignedMask:
    """The signs, or a control."""
    if name == "shuffled":
        return signed.shuffled(seed)
    return signed.randomized(seed) if name == "random" else signed


def give_signs(
    ticket_args: TicketArguments,
    signed: SignedMask,
    model: PreTrainedModel,
    norms: NormParameters,
    model_args: ModelArguments,
) -> None:
    """Sign the weights to start from, and say what that left out."""
    magnitudes: Any = ticket_args.magnitudes
    if magnitudes.startswith("checkpoint:"):
        magnitudes = load_checkpoint(magnitudes.partition(":")[2], model_args)
    report = signed.transfer_(model, magnitudes=magnitudes, zeros=ticket_args.zeros)
    logging.info("%d parameters signed; zero, so without a sign: %s", len(report.signed), report.zero or "none")
    if ticket_args.keep_norms:
        with torch.no_grad():
            for name, trained in norms.items():
                model.get_parameter(name).copy_(trained)


def load_checkpoint(folder: str, model_args: ModelArguments) -> PreTrainedModel:
    """A trained model of the task."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"the checkpoint must be a folder; received {folder}, which does not exist.")
    return AUTO_MODELS[model_args.task].from_pretrained(folder)


def choose_mask(ticket_args: TicketArguments, mask: Mask, seed: int) -> Mask | None:
    """The ticket's mask, the aligned one, or a control."""
    name = ticket_args.mask
    if ticket_args.aligned:
        return Mask.from_pretrained(ticket_args.aligned)
    if name == "none":
        return None
    if name == "shuffled":
        return mask.shuffled(seed)
    if name == "random":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            zeros = {parameter: torch.zeros(entry.shape) for parameter, entry in mask.items()}
            return prune(score_weights(zeros, random), mask.sparsity)
    return mask
