"""The cells of the transfer ladder: what each one is, what it needs, and where its result is kept.

A cell is a search of one network, or one row of the ladder for one target, which is a final training. Its name contains
a hash of everything that defines it, including the cells that it needs. So a result on disk is valid as long as its
name is asked for again.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...storage.atomic import sweep
from ...training.rewind import RewindPoint, parse_rewind
from ..commands.parser import RecipeParser
from ..tasks.data import Data, DataArguments, trainer_arguments
from ..tasks.loading import load_task_data
from ..tasks.models import ModelArguments
from ..trainers.arguments import LotteryArguments
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.run_folder import REWIND_NAME
from ..trainers.run_settings import run_settings
from ..trainers.sparse_trainer import SparseTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .bare_loop import BareLotteryTrainer, BareSparseTrainer, BareWinningSignTrainer
from .options import LadderArguments
from .paired import direction
from .rows import ROWS, SEARCHES

# Settings of the levels of a search. Rewinding has none: its levels are trained as the dense network is.
_LEVEL_SETTINGS = ("dense_epochs", "level_epochs", "level_lr_scheduler_type")


@dataclass(frozen=True, order=True)
class Cell:
    """One search or row of the network with this seed.

    Attributes:
        kind: A name of ``ROWS``, or ``search_`` and a name of ``SEARCHES``.
        seed: The seed of the network.
    """

    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.seed}"


class Ladder:
    """All cells of a ladder, with the data and settings to compute them.

    Args:
        which: The networks and rows.
        model_args: The model.
        data_args: What it trains on.
        args: Settings of the searches and of the final training. Only searches that keep their weights use
            ``dense_epochs``, ``level_epochs`` and ``level_lr_scheduler_type``.
        alike: Another ladder on the same data, which are then loaded once for both.
    """

    def __init__(
        self, which: LadderArguments, model_args: ModelArguments, data_args: DataArguments, args: Any,
        *, alike: Ladder | None = None,
    ):  # fmt: skip
        self._alike = alike
        self.which, self.model_args, self.data_args = which, model_args, data_args
        self.args = cast(LotteryArguments, args)
        self.folder = Path(cast(str, args.output_dir))
        self._check()

    @classmethod
    def of(cls, command: Sequence[str], *, alike: Ladder | None = None) -> Ladder:
        """Make the ladder that a command line asks for, without its sweeps."""
        parser = RecipeParser([LadderArguments, ModelArguments, DataArguments, LotteryArguments], "ladder")
        return cls(*parser.parse(command), alike=alike)

    @property
    def cells(self) -> list[Cell]:
        """Every cell of the ladder; each comes after those that it needs."""
        rows = [Cell(row, seed) for row in self.which.rows for seed in self.targets]
        found: dict[Cell, None] = {}

        def add(cell: Cell) -> None:
            for needed in self.needs(cell):
                add(needed)
            found[cell] = None

        for row in rows:
            add(row)
        return list(found)

    def _check(self) -> None:
        if self.start_point().keeps_weights:
            raise ValueError(
                f"rows must start at init, step:K or epoch:K of dense training; received {self.start}, the rewind "
                "point of the search. Give start."
            )
        which, args = self.which, self.args
        if (which.scan or which.sparsities or which.at) and (args.schedule != "geometric" or args.final_run):
            received = args.schedule if args.schedule != "geometric" else "a final run"
            raise ValueError(
                f"one search must pass through all sparsities; received {received}. Use schedule=geometric without a "
                "final run, or give sparsity."
            )

    @property
    def measure(self) -> str:
        """What rows are measured by: loss or accuracy."""
        return "loss" if self.model_args.task == "causal-lm" else "accuracy"

    def gain(self, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
        """Return how much better measures are than others: higher accuracies, lower losses."""
        return direction(self.measure) * (better - worse)

    @property
    def targets(self) -> Sequence[int]:
        """The seeds of the targets."""
        return self.which.targets or self.which.seeds

    @property
    def ring(self) -> bool:
        """Whether targets share networks: the source of one is another."""
        return any(self.source(target) in self.targets for target in self.targets)

    def source(self, target: int) -> int:
        """Return the seed of the network before the target in the ring."""
        return self.which.seeds[self.which.seeds.index(target) - 1]

    def needs(self, cell: Cell) -> list[Cell]:
        """Return the cells whose results a cell reads."""
        if not self.is_row(cell):
            return []
        row, source = ROWS[cell.kind], self.source(cell.seed)
        needed = [Cell(f"search_{kind}", source) for kind in row.of_source]
        needed += [Cell(f"search_{kind}", cell.seed) for kind in row.of_target]
        if self.reuses(cell) and self.start != "init":
            needed.append(Cell("search_imp", cell.seed))  # which saves where the rows start
        needed += [] if (end := self.end(cell)) is None else [end]
        return list(dict.fromkeys(needed))

    def end(self, cell: Cell) -> Cell | None:
        """Return the cell to whose solution the barrier of a row leads; None if the row has no barrier."""
        end = ROWS[cell.kind].end
        if end is None:
            return None
        return Cell(end, cell.seed if end == "lth" else self.source(cell.seed))

    @staticmethod
    def is_row(cell: Cell) -> bool:
        """Return whether a cell is a row; otherwise it is a search."""
        return not cell.kind.startswith("search_")

    def reuses(self, cell: Cell) -> bool:
        """Return whether a cell is a row that begins where rows start; ``dense`` begins at the initialization."""
        return self.is_row(cell) and cell.kind != "dense"

    def digest(self, cell: Cell) -> str:
        """Return the hash of everything that defines a cell."""
        if cell not in self._digests:
            model = self.model_args
            what = {
                "cell": str(cell),
                "settings": run_settings(self.arguments_of(cell), {"data": asdict(self.data_args)}),
                "model": [model.task, model.model_name_or_path, model.model_revision, model.load_config().to_dict()],
                "match_batches": self.which.match_batches if cell.kind.startswith("permuted") else None,
                "start": self.start if cell.kind == "search_imp" or self.reuses(cell) else None,
                "trainer": self.trainers["row"].__name__,
                "needs": [self.digest(needed) for needed in self.needs(cell)],
            }
            if self.reuses(cell):
                what["row"] = [self.level, self.which.row_learning_rate, self.which.row_epochs]
            text = json.dumps(what, sort_keys=True, default=str)
            self._digests[cell] = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self._digests[cell]

    @cached_property
    def _digests(self) -> dict[Cell, str]:
        return {}

    def file(self, cell: Cell) -> Path:
        """Return the file of a cell's result."""
        return self.folder / "cells" / f"{cell}-{self.digest(cell)}.json"

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Read the result of a cell; None if there is none yet."""
        file = self.file(cell)
        return json.loads(file.read_text()) if file.exists() else None

    def sweep(self) -> None:
        """Delete the files that killed workers left unfinished."""
        for folder in ("cells", "solutions"):
            sweep(self.folder / folder)

    def searched(self, kind: str, seed: int) -> Path:
        """Return the folder of a search."""
        cell = Cell(f"search_{kind}", seed)
        return self.folder / "searches" / f"{cell}-{self.digest(cell)}"

    def start_file(self, seed: int) -> Path:
        """Return the file of the weights of a network where its rows start."""
        search = self.searched("imp", seed)
        if self.keeps_start:
            return search / "rows_start.safetensors"
        return search / f"level-{self.level:02d}" / REWIND_NAME

    @property
    def start(self) -> str:
        """Where rows start on the dense training of their network."""
        point = parse_rewind(self.which.start or self.args.rewind or "init")
        return "init" if point.kind in ("step", "epoch") and not point.at else str(point)

    @property
    def keeps_start(self) -> bool:
        """Whether a search has to save where rows start, because it rewinds to another point."""
        return self.start not in ("init", self.args.rewind)

    @cached_property
    def level(self) -> int:
        """The level of the searches whose masks are taken."""
        sparsities = self.args.get_sparsities()
        if self.which.at is None:
            return len(sparsities) - 1
        return min(range(1, len(sparsities)), key=lambda level: abs(sparsities[level] - cast(float, self.which.at)))

    def solution(self, cell: Cell) -> Path:
        """Return the file of the network that a row trained."""
        return self.folder / "solutions" / f"{cell}-{self.digest(cell)}.safetensors"

    def arguments_of(self, cell: Cell) -> LotteryArguments:
        """Make the settings of a cell."""
        args = copy.copy(self.args)
        args.seed, args.save_strategy = cell.seed, "no"
        interpolation = SEARCHES.get(cell.kind.removeprefix("search_"))
        if interpolation is not None and not self.is_row(cell):
            args.norm_interpolation, args.rewind = interpolation, "learning_rate"
        elif self.is_row(cell) or args.rewind != "none":
            for name in _LEVEL_SETTINGS:
                setattr(args, name, None)
        if cell.kind == "dense":  # it is the same for every search
            args.sparsity = args.levels = args.rewind = args.structured_groups = None
            args.structured, args.structured_multiple = False, 1
        rate, epochs = self.which.row_learning_rate, self.which.row_epochs
        if self.reuses(cell) and rate is not None:
            args.learning_rate = rate
            if epochs is not None:
                args.num_train_epochs, args.max_steps = epochs, -1
        return args

    def start_point(self) -> RewindPoint:
        """Return where rows start."""
        return parse_rewind(self.start)

    @property
    def trainers(self) -> Mapping[str, type[SparseTrainer]]:
        """The Trainers of searches, of searches for signs and of rows.

        The bare loop needs samples that stay as they are, and takes a step for every batch.
        """
        if self.data_args.augment or self.args.gradient_accumulation_steps > 1:
            return {"search": LotteryTrainer, "signs": WinningSignTrainer, "row": SparseTrainer}
        return {"search": BareLotteryTrainer, "signs": BareWinningSignTrainer, "row": BareSparseTrainer}

    @cached_property
    def data(self) -> Data:
        """The data of the task."""
        if self._alike is not None:
            return self._alike.data
        return load_task_data(self.model_args, self.data_args, self.model_args.load_config())

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments of every Trainer, except its model and its settings."""
        return trainer_arguments(self.model_args.task, self.data)
