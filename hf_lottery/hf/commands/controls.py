"""Trainings at a ticket's own sparsity that are measured against it.

``reinit`` trains the ticket's mask on a fresh random initialization, on the whole schedule. ``shuffled`` trains the
ticket's weights under its mask shuffled within each parameter, which is a random mask that keeps as many weights in
each layer; of a structured ticket, it keeps as many random units of each group. ``dense`` trains the ticket's weights
without a mask, and ``ticket`` is the ticket itself. Those three are trained on the ticket's schedule. All four networks
have then taken the same number of steps.
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
from transformers.trainer_callback import ProgressCallback

from ...masks.mask import Mask
from ...storage.atomic import write_atomically
from ..hub.ticket import Ticket
from ..tasks.data import Data, trainer_arguments
from ..tasks.models import ModelArguments, build_model
from ..trainers.garbage import frozen_collector
from ..trainers.level_bar import LevelBar
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.run_lock import locked_folder
from ..trainers.sparse_trainer import SparseTrainer

# What a training starts from: the network, the mask, and the steps that the weights were already trained for.
Start = tuple[nn.Module, Mask | None, int]
# Makes a random mask of a mask and a seed.
Shuffle = Callable[[Mask, int], Mask]


def _reinit(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int, shuffle: Shuffle) -> Start:
    return build_model(model_args, data, seed, fresh=True), ticket.mask, 0


def _shuffled(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int, shuffle: Shuffle) -> Start:
    return _rewound(ticket, model_args, data, seed), shuffle(ticket.mask, seed), ticket.start.step


def _dense(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int, shuffle: Shuffle) -> Start:
    return _rewound(ticket, model_args, data, seed), None, ticket.start.step


def _ticket(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int, shuffle: Shuffle) -> Start:
    return _rewound(ticket, model_args, data, seed), ticket.mask, ticket.start.step


def _rewound(ticket: Ticket, model_args: ModelArguments, data: Data, seed: int) -> nn.Module:
    model = build_model(model_args, data, seed)
    ticket.start.restore_(model)
    return model


CONTROLS = ("reinit", "shuffled")
STARTS: dict[str, Callable[[Ticket, ModelArguments, Data, int, Shuffle], Start]] = {
    "dense": _dense,
    "ticket": _ticket,
    "shuffled": _shuffled,
    "reinit": _reinit,
}


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
    results = KeptResults(trainer, "controls.json")
    for record in trainer.history[1:]:
        for name in names:
            level = record["level"]
            key = f"{level}:{name}"
            if key in results.values:
                continue
            seed = int(np.random.SeedSequence([trainer.args.seed, level, *name.encode()]).generate_state(1)[0])
            metrics = train_start(name, level, trainer, model_args, data, seed=seed, title=f"level {level}, {name}")
            results.add(key, {"sparsity": record["sparsity"], **metrics})


class KeptResults:
    """Results of trainings in a JSON file of a search's folder, so that an interrupted command goes on behind them.

    Args:
        trainer: The trainer of the search.
        name: Name of the file.

    Attributes:
        values: Key -> metrics.
    """

    def __init__(self, trainer: LotteryTrainer, name: str):
        self._file, self._writes = Path(str(trainer.args.output_dir)) / name, trainer.args.should_save
        self.values: dict[str, dict[str, Any]] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def add(self, key: str, metrics: dict[str, Any]) -> None:
        """Add the metrics of one training, and write the file."""
        self.values[key] = metrics
        if self._writes:
            write_atomically(self._file, (json.dumps(self.values, indent=2) + "\n").encode())


def train_start(
    name: str,
    level: int,
    trainer: LotteryTrainer,
    model_args: ModelArguments,
    data: Data,
    *,
    seed: int,
    title: str,
) -> dict[str, Any]:
    """Train one network as a level of a finished search was trained, and return its metrics.

    Args:
        name: What to train, of :data:`STARTS`.
        level: The level.
        trainer: The trainer of the search.
        model_args: The network.
        data: What it trains on.
        seed: Draws the initialization and the shuffled mask.
        title: What the progress bar says.
    """
    folder = Path(str(trainer.args.output_dir))
    ticket = Ticket.from_pretrained(folder / f"level-{level:02d}")
    model, mask, first_step = STARTS[name](ticket, model_args, data, seed, trainer.pruning.shuffled)
    args = copy.copy(trainer.args)
    args.output_dir, args.save_strategy = str(folder / "controls"), "no"
    for setting, value in trainer.level_arguments(level).items():  # it is trained as the level was
        setattr(args, setting, value)
    set_seed(seed)
    control = SparseTrainer(
        model=model, args=args, mask=mask, first_step=first_step, **trainer_arguments(model_args.task, data)
    )
    if control.pop_callback(ProgressCallback) is not None:
        control.add_callback(LevelBar(lambda: title))
    control.train()
    return control.evaluate()
