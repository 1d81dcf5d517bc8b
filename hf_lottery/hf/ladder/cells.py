"""The cells of the transfer ladder: what each one is, what it needs, and where its result is kept.

A cell is a search of one network, or one row of the ladder for one target, which is a final training. Its name contains
a hash of everything that defines it, including the cells that it needs. So a result on disk is valid as long as its
name is asked for again.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from ...storage.atomic import sweep
from ..commands.parser import RecipeParser
from ..tasks.data import Data, DataArguments, trainer_arguments
from ..tasks.loading import load_task_data
from ..tasks.models import ModelArguments
from ..trainers.arguments import LotteryArguments
from ..trainers.run_settings import run_settings
from .paired import split_pair
from .rows import ROWS, SEARCHES

_ABOUT = "; ".join(f"{name}: {row.about}" for name, row in ROWS.items())
# Settings that only the searches for signs use.
_SIGN_SETTINGS = ("dense_epochs", "level_epochs", "level_lr_scheduler_type")


@dataclass
class LadderArguments:
    """The networks and rows of a ladder, how to match, and what to show.

    Raises:
        ValueError: A row is unknown, there are fewer than two seeds, or a number is below 1.
    """

    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4], metadata={"help": "Seeds of the networks, two or more."}
    )
    rows: list[str] = field(
        default_factory=lambda: [name for name, row in ROWS.items() if row.by_default],
        metadata={"help": f"Rows of the ladder; those that others are compared to are added. {_ABOUT}."},
    )
    pairs: list[str] | None = field(
        default=None,
        metadata={"help": "Pairs of rows whose paired difference is shown too, such as aws_signs-aws_mask."},
    )
    match_batches: int = field(default=32, metadata={"help": "Number of training batches to match activations on."})
    title: str | None = field(
        default=None, metadata={"help": "Name of the ladder in tables and pictures. Default: network and data."}
    )
    sparsities: list[float] | None = field(
        default=None, metadata={"help": "Make a ladder at each of these sparsities."}
    )
    rewinds: list[str] | None = field(default=None, metadata={"help": "Make a ladder for each of these rewind points."})
    widths: list[int] | None = field(
        default=None, metadata={"help": "Make a ladder for each of these values of width in the configuration."}
    )
    workers: int | None = field(
        default=None, metadata={"help": "How many cells are computed side by side. Default: one a GPU, or one a core."}
    )
    plan: bool = field(default=False, metadata={"help": "Print what is left to do and what it costs, and stop."})

    def __post_init__(self) -> None:
        paired = [name for pair in self.pairs or [] for name in split_pair(pair)]
        if unknown := {*self.rows, *paired} - ROWS.keys():
            raise ValueError(f"rows must be among {', '.join(ROWS)}; received {min(unknown)!r}.")
        if len(set(self.seeds)) < 2:
            raise ValueError(f"seeds must be two or more; received {self.seeds}. Each network has another as source.")
        for name in ("match_batches", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; received {value}.")
        asked = {*self.rows, *paired}
        needed = {"lth", "naive", *(end for name in asked if (end := ROWS[name].end))}
        self.rows = [name for name in ROWS if name in asked | needed]


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
        args: Settings of the searches and of the final training. Only the searches for signs use ``dense_epochs``,
            ``level_epochs`` and ``level_lr_scheduler_type``.
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

    @classmethod
    def of(cls, command: Sequence[str], *, alike: Ladder | None = None) -> Ladder:
        """Make the ladder that a command line asks for, without its sweeps."""
        parser = RecipeParser([LadderArguments, ModelArguments, DataArguments, LotteryArguments])
        return cls(*parser.parse(command), alike=alike)

    @property
    def cells(self) -> list[Cell]:
        """Every cell of the ladder; each comes after those that it needs."""
        rows = [Cell(row, seed) for row in self.which.rows for seed in self.which.seeds]
        found: dict[Cell, None] = {}

        def add(cell: Cell) -> None:
            for needed in self.needs(cell):
                add(needed)
            found[cell] = None

        for row in rows:
            add(row)
        return list(found)

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
        return needed if (end := self.end(cell)) is None else [*needed, end]

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

    def digest(self, cell: Cell) -> str:
        """Return the hash of everything that defines a cell."""
        if cell not in self._digests:
            model = self.model_args
            what = {
                "cell": str(cell),
                "settings": run_settings(self.arguments_of(cell), {"data": asdict(self.data_args)}),
                "model": [model.task, model.model_name_or_path, model.model_revision, model.load_config().to_dict()],
                "match_batches": self.which.match_batches if cell.kind.startswith("permuted") else None,
                "needs": [self.digest(needed) for needed in self.needs(cell)],
            }
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

    def solution(self, cell: Cell) -> Path:
        """Return the file of the network that a row trained."""
        return self.folder / "solutions" / f"{cell}-{self.digest(cell)}.safetensors"

    def arguments_of(self, cell: Cell) -> LotteryArguments:
        """Make the settings of a cell."""
        args = copy.copy(self.args)
        args.seed, args.save_strategy = cell.seed, "no"
        interpolation = SEARCHES.get(cell.kind.removeprefix("search_"))
        if interpolation is None or self.is_row(cell):
            for name in _SIGN_SETTINGS:
                setattr(args, name, None)
        else:
            args.norm_interpolation, args.rewind = interpolation, "learning_rate"
        return args

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
