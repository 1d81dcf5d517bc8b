"""Train a saved ticket, or the controls it must beat.

    accelerate launch recipes/train_ticket.py --config recipes/digits/imp.yaml --ticket outputs/digits-imp/ticket \\
        --output_dir outputs/digits-lth

``--init ticket --mask ticket`` (the default) is the lottery-ticket run; ``--init seed:7`` the naive transfer to another
initialization; ``--init checkpoint:FOLDER --mask aligned --aligned FOLDER`` the permuted one (see align_mask.py);
``--mask random`` and ``--mask shuffled`` forget which weights, ``--mask none`` trains dense.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import AUTO_MODELS, ModelArguments, build_model, load_task_data, set_up, trainer_arguments
from data import Data, DataArguments
from transformers import PreTrainedModel

from hf_lottery import LotteryArguments, Mask, RecipeParser, SparseTrainer, Ticket, prune, random, score_weights

MASKS = ("ticket", "aligned", "random", "shuffled", "none")


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
    first_step = ticket.rewind.step if ticket_args.init == "ticket" else 0
    trainer = SparseTrainer(
        model=model,
        args=args,
        mask=choose_mask(ticket_args, ticket.mask, args.seed),
        first_step=first_step if ticket_args.first_step is None else ticket_args.first_step,
        **trainer_arguments(model_args.task, data),
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.save_metrics("eval", metrics)
    if args.should_save:
        sparsity = trainer.mask.sparsity if trainer.mask else 0.0
        print(f"\ninit={ticket_args.init} mask={ticket_args.mask} sparsity={sparsity:.4f}")
        print("\n".join(f"{name} = {value:.4f}" for name, value in metrics.items()))


def start_weights(init: str, ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> PreTrainedModel:
    """The model at the weights that ``init`` names."""
    kind, _, value = init.partition(":")
    if kind == "checkpoint":
        if not Path(value).is_dir():
            raise FileNotFoundError(f"the checkpoint must be a folder; received {value}, which does not exist.")
        return AUTO_MODELS[model_args.task].from_pretrained(value)
    model = build_model(model_args, data, int(value) if kind == "seed" else seed, fresh=kind == "seed")
    if kind == "ticket":
        ticket.rewind.restore_(model)
    return model


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


if __name__ == "__main__":
    main()
