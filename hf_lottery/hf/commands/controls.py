"""Controls: what a ticket must beat at its own sparsity.

``reinit`` is the ticket's mask on a fresh random initialization, trained on the whole schedule; ``shuffled`` the
ticket's weights under its mask shuffled within each parameter, trained as the ticket is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import nn
from transformers import set_seed

from ...masks.mask import Mask
from ...storage.atomic import write_atomically
from ..hub.ticket import Ticket
from ..tasks.data import Data
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.sparse_trainer import SparseTrainer
from .common import ModelArguments, build_model, trainer_arguments

# What a control starts from: network, mask, and the steps that lie behind the weights.
Start = Callable[[Ticket, ModelArguments, Data, int], tuple[nn.Module, Mask, int]]


def _reinit(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> tuple[nn.Module, Mask, int]:
    return build_model(model_args, data, seed, fresh=True), ticket.mask, 0


def _shuffled(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> tuple[nn.Module, Mask, int]:
    model = build_model(model_args, data, seed)
    ticket.start.restore_(model)
    return model, ticket.mask.shuffled(seed), ticket.start.step


CONTROLS: dict[str, Start] = {"reinit": _reinit, "shuffled": _shuffled}


def train_controls(names: Sequence[str], trainer: LotteryTrainer, model_args: ModelArguments, data: Data) -> None:
    """Train the controls of every level that prunes; results go to ``controls.json``, finished ones are skipped."""
    results_file = Path(str(trainer.args.output_dir)) / "controls.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    for record in trainer.history[1:]:
        ticket = Ticket.from_pretrained(results_file.parent / f"level-{record['level']:02d}")
        for name in names:
            key = f"{record['level']}:{name}"
            if key in results:
                continue
            seed = int(
                np.random.SeedSequence([trainer.args.seed, record["level"], *name.encode()]).generate_state(1)[0]
            )
            model, mask, first_step = CONTROLS[name](ticket, model_args, data, seed)
            args = copy.copy(trainer.args)
            args.output_dir, args.save_strategy = str(results_file.parent / "controls"), "no"
            for setting, value in trainer._level_arguments(record["level"]).items():  # trained as the level was
                setattr(args, setting, value)
            set_seed(seed)
            control = SparseTrainer(
                model=model, args=args, mask=mask, first_step=first_step,
                **trainer_arguments(model_args.task, data),
            )  # fmt: skip
            control.train()
            results[key] = {"sparsity": record["sparsity"], **control.evaluate()}
            if args.should_save:
                write_atomically(results_file, (json.dumps(results, indent=2) + "\n").encode())
