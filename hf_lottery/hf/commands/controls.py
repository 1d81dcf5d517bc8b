"""Controls: trainings at the ticket's own sparsity that the ticket must beat.

``reinit`` trains the ticket's mask on a fresh random initialization, on the whole schedule. ``shuffled`` trains the
ticket's weights under its mask shuffled within each parameter, on the ticket's schedule.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import set_seed

from ...masks.mask import Mask
from ...storage.atomic import write_atomically
from ..hub.ticket import Ticket
from ..tasks.data import Data, trainer_arguments
from ..tasks.models import ModelArguments, build_model
from ..trainers.garbage import frozen_collector
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.run_lock import locked_folder
from ..trainers.sparse_trainer import SparseTrainer

# What a control starts from: the network, the mask, and the steps that the weights were already trained for.
Start = Callable[[Ticket, ModelArguments, Data, int], tuple[nn.Module, Mask, int]]


def _reinit(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> tuple[nn.Module, Mask, int]:
    return build_model(model_args, data, seed, fresh=True), ticket.mask, 0


def _shuffled(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> tuple[nn.Module, Mask, int]:
    model = build_model(model_args, data, seed)
    ticket.start.restore_(model)
    return model, ticket.mask.shuffled(seed), ticket.start.step


CONTROLS: dict[str, Start] = {"reinit": _reinit, "shuffled": _shuffled}


def train_controls(names: Sequence[str], trainer: LotteryTrainer, model_args: ModelArguments, data: Data) -> None:
    """Train the controls of every level that prunes, and write the results to ``controls.json``.

    Args:
        names: Which controls, of :data:`CONTROLS`. Those that have results already are skipped.
        trainer: The trainer of the finished search.
        model_args: The network.
        data: What it trains on.

    Raises:
        RuntimeError: Another process uses the search's folder.
    """
    if not names:
        return
    with locked_folder(str(trainer.args.output_dir), main=trainer.is_world_process_zero()), frozen_collector():
        _train_missing(names, trainer, model_args, data)


def _train_missing(names: Sequence[str], trainer: LotteryTrainer, model_args: ModelArguments, data: Data) -> None:
    results_file = Path(str(trainer.args.output_dir)) / "controls.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    for record in trainer.history[1:]:
        for name in names:
            key = f"{record['level']}:{name}"
            if key in results:
                continue
            metrics = _train_control(name, record["level"], trainer, model_args, data)
            results[key] = {"sparsity": record["sparsity"], **metrics}
            if trainer.args.should_save:
                write_atomically(results_file, (json.dumps(results, indent=2) + "\n").encode())


def _train_control(
    name: str, level: int, trainer: LotteryTrainer, model_args: ModelArguments, data: Data
) -> dict[str, Any]:
    folder = Path(str(trainer.args.output_dir))
    ticket = Ticket.from_pretrained(folder / f"level-{level:02d}")
    seed = int(np.random.SeedSequence([trainer.args.seed, level, *name.encode()]).generate_state(1)[0])
    model, mask, first_step = CONTROLS[name](ticket, model_args, data, seed)
    args = copy.copy(trainer.args)
    args.output_dir, args.save_strategy = str(folder / "controls"), "no"
    for setting, value in trainer.level_arguments(level).items():  # the control is trained as the level was
        setattr(args, setting, value)
    set_seed(seed)
    control = SparseTrainer(
        model=model, args=args, mask=mask, first_step=first_step, **trainer_arguments(model_args.task, data)
    )
    control.train()
    return control.evaluate()
