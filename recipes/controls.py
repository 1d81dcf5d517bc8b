"""Controls: what a ticket must beat at its own sparsity, trained on the same schedule.

``reinit`` is the ticket's mask on a fresh random initialization, ``shuffled`` the ticket's weights under its mask
shuffled within each parameter.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from common import ModelArguments, build_model, trainer_arguments
from data import Data
from torch import nn
from transformers import set_seed

from hf_lottery import LotteryTrainer, Mask, SparseTrainer, Ticket

Start = Callable[[Ticket, ModelArguments, Data, int], tuple[nn.Module, Mask]]


def _reinit(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> tuple[nn.Module, Mask]:
    return build_model(model_args, data, seed), ticket.mask


def _shuffled(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> tuple[nn.Module, Mask]:
    model = build_model(model_args, data, seed)
    ticket.rewind.restore_(model)
    return model, ticket.mask.shuffled(seed)


CONTROLS: dict[str, Start] = {"reinit": _reinit, "shuffled": _shuffled}


def train_controls(names: Sequence[str], trainer: LotteryTrainer, model_args: ModelArguments, data: Data) -> None:
    """Train the controls of every level that prunes; results go to ``controls.json``, finished ones are skipped."""
    args = copy.copy(trainer.args)
    results_file = Path(str(trainer.args.output_dir)) / "controls.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    for record in trainer.history[1:]:
        ticket = Ticket.from_pretrained(results_file.parent / f"level-{record['level']:02d}")
        for name in names:
            key = f"{record['level']}:{name}"
            if key in results:
                continue
            seed = int(np.random.SeedSequence([args.seed, record["level"], *name.encode()]).generate_state(1)[0])
            model, mask = CONTROLS[name](ticket, model_args, data, seed)
            args.output_dir, args.save_strategy = str(results_file.parent / "controls"), "no"
            set_seed(seed)
            control = SparseTrainer(
                model=model, args=args, mask=mask, first_step=ticket.rewind.step,
                **trainer_arguments(model_args.task, data),
            )  # fmt: skip
            control.train()
            results[key] = {"sparsity": record["sparsity"], **control.evaluate()}
            if args.should_save:
                results_file.write_text(json.dumps(results, indent=2) + "\n")
