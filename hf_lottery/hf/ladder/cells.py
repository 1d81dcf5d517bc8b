"""The cells of the transfer ladder: what each one is, what it needs, and where its result lies.

A cell is a search of one network, or one row of the ladder for one target: a final training. It is named by a hash of
all that defines it, the cells it needs included, so a result on disk is good as long as its name comes up again.
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
from ..commands.common import ModelArguments, load_task_data, trainer_arguments
from ..commands.parser import RecipeParser
from ..tasks.data import Data, DataArguments
from ..trainers.arguments import LotteryArguments
from ..trainers.run_settings import run_settings

SEARCHES = {"imp": None, "lrr": "none", "aws": "step"}  # and how norms are interpolated
# Row -> the searches it needs of the source and of the target, and the row whose solution its barrier leads to: of the
# target, but for the signs, which come from the source.
ROWS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str | None]] = {
    "dense": ((), ("imp",), None),
    "lth": ((), ("imp",), None),
    "random": (("imp",), ("imp",), "lth"),
    "naive": (("imp",), ("imp",), "lth"),
    "permuted_weight": (("imp",), ("imp",), "lth"),
    "permuted_activation": (("imp",), ("imp",), "lth"),
    "permuted_early": (("imp",), ("imp",), "lth"),
    "permuted_residual": (("imp",), ("imp",), "lth"),
    "lrr": ((), ("lrr", "imp"), None),
    "lrr_signs": (("lrr",), ("imp",), "lrr"),
    "aws": ((), ("aws", "imp"), None),
    "aws_signs": (("aws",), ("imp",), "aws"),
    "aws_mask": (("aws",), ("imp",), "aws"),
    "random_signs": (("aws",), ("imp",), "aws"),
    "permuted_signs": (("aws", "imp"), ("imp",), "aws"),
}
_SIGN_SETTINGS = ("dense_epochs", "level_epochs", "level_lr_scheduler_type")  # of the searches for signs only


@dataclass
class LadderArguments:
    """Which networks and rows, and how to match."""

    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4], metadata={"help": "Seeds of the networks, two or more."}
    )
    rows: list[str] = field(
        default_factory=lambda: [row for row in ROWS if row != "permuted_residual"],
        metadata={"help": f"Rows of the ladder: {', '.join(ROWS)}. permuted_residual is for networks with attention."},
    )
    match_batches: int = field(default=32, metadata={"help": "Training batches to match activations on."})
    title: str | None = field(
        default=None, metadata={"help": "What tables and pictures call it. Default: network, data."}
    )
    sparsities: list[float] | None = field(default=None, metadata={"help": "A ladder at each of these sparsities."})
    rewinds: list[str] | None = field(default=None, metadata={"help": "A ladder for each of these rewind points."})
    widths: list[int] | None = field(
        default=None, metadata={"help": "A ladder for each of these values of width in the configuration."}
    )
    workers: int | None = field(
        default=None, metadata={"help": "Cells side by side. Default: one a GPU, or one a core of the CPU."}
    )
    plan: bool = field(default=False, metadata={"help": "Print what is left to do and its cost, and stop."})

    def __post_init__(self) -> None:
        if unknown := set(self.rows) - ROWS.keys():
            raise ValueError(f"rows must be among {', '.join(ROWS)}; received {min(unknown)!r}.")
        if len(set(self.seeds)) < 2:
            raise ValueError(f"seeds must be two or more; received {self.seeds}. Each network has another as source.")
        for name in ("match_batches", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; received {value}.")
        needed = {"lth", "naive", *(end for row in self.rows if (end := ROWS[row][2]))}
        self.rows = [row for row in ROWS if row in {*self.rows, *needed}]


@dataclass(frozen=True, order=True)
class Cell:
    """One search (``kind`` of SEARCHES) or row (of ROWS) of the network with this seed."""

    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.seed}"


class Ladder:
    """All cells of a ladder, with the data and settings to compute them.

    Args:
        which: Networks and rows.
        model_args: The network.
        data_args: What it trains on.
        args: The search and the final training; ``dense_epochs``, ``level_epochs`` and ``level_lr_scheduler_type``
            are of the searches for signs.
        alike: A ladder on the same data, which are then loaded once for both.
    """

    def __init__(
        self, which: LadderArguments, model_args: ModelArguments, data_args: DataArguments, args: Any,
        alike: Ladder | None = None,
    ):  # fmt: skip
        self._alike = alike
        self.which, self.model_args, self.data_args = which, model_args, data_args
        self.args = cast(LotteryArguments, args)
        self.folder = Path(cast(str, args.output_dir))

    @classmethod
    def of(cls, command: Sequence[str], alike: Ladder | None = None) -> Ladder:
        """The ladder that a command line asks for, sweeps aside."""
        parser = RecipeParser([LadderArguments, ModelArguments, DataArguments, LotteryArguments])
        return cls(*parser.parse(command), alike=alike)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, after those that it needs."""
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
        """The network before the target, in the ring of all."""
        return self.which.seeds[self.which.seeds.index(target) - 1]

    def needs(self, cell: Cell) -> list[Cell]:
        """The cells whose results a cell reads."""
        if not self.is_row(cell):
            return []
        of_source, of_target, end = ROWS[cell.kind]
        source = self.source(cell.seed)
        needed = [Cell(f"search_{kind}", source) for kind in of_source]
        needed += [Cell(f"search_{kind}", cell.seed) for kind in of_target]
        if end is not None:
            needed.append(Cell(end, cell.seed if end == "lth" else source))
        return needed

    @staticmethod
    def is_row(cell: Cell) -> bool:
        """Whether a cell is a row, not a search."""
        return not cell.kind.startswith("search_")

    def digest(self, cell: Cell) -> str:
        """The hash of what defines a cell."""
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
        """Where the result of a cell lies."""
        return self.folder / "cells" / f"{cell}-{self.digest(cell)}.json"

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The result of a cell, if there is one."""
        file = self.file(cell)
        return json.loads(file.read_text()) if file.exists() else None

    def sweep(self) -> None:
        """Delete what killed workers had begun to write."""
        for folder in ("cells", "solutions"):
            sweep(self.folder / folder)

    def searched(self, kind: str, seed: int) -> Path:
        """The folder of a search."""
        cell = Cell(f"search_{kind}", seed)
        return self.folder / "searches" / f"{cell}-{self.digest(cell)}"

    def solution(self, cell: Cell) -> Path:
        """The file of the network that a row trained."""
        return self.folder / "solutions" / f"{cell}-{self.digest(cell)}.safetensors"

    def arguments_of(self, cell: Cell) -> LotteryArguments:
        """The settings of a cell."""
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
        """What every Trainer takes besides network and settings."""
        return trainer_arguments(self.model_args.task, self.data)
