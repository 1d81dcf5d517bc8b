"""The cells of the transfer ladder: what each one is, what it needs, and how it is computed.

A cell is a search of one network, or one row of the ladder for one target: a final training. It is named by a hash of
all that defines it, the cells it needs included, so a result on disk is good as long as its name comes up again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from align_mask import match
from batches import example_batch, training_batches
from common import ModelArguments, build_model, load_task_data, trainer_arguments
from connectivity import Judge
from data import Data, DataArguments
from report_sections import measure_of
from transformers import PreTrainedModel, set_seed

from hf_lottery import (
    LotteryArguments,
    LotteryTrainer,
    Mask,
    Permutation,
    RecipeParser,
    SignedMask,
    Snapshot,
    SparseTrainer,
    Ticket,
    WinningSignTrainer,
    activation_matching,
    discover,
    error_barrier,
    permute_,
)
from hf_lottery.hf.run_settings import run_settings
from hf_lottery.staging import write_atomically

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
    """All cells of a ladder, and the data and settings to compute them.

    Args:
        which: Networks and rows.
        model_args: The network.
        data_args: What it trains on.
        args: The search and the final training; ``dense_epochs``, ``level_epochs`` and ``level_lr_scheduler_type``
            are of the searches for signs.
    """

    def __init__(self, which: LadderArguments, model_args: ModelArguments, data_args: DataArguments, args: Any):
        self.which, self.model_args, self.data_args = which, model_args, data_args
        self.args = cast(LotteryArguments, args)
        self.folder = Path(cast(str, args.output_dir))

    @classmethod
    def of(cls, command: Sequence[str]) -> Ladder:
        """The ladder that a command line asks for, sweeps aside."""
        return cls(*RecipeParser([LadderArguments, ModelArguments, DataArguments, LotteryArguments]).parse(command))

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

    def compute(self, cell: Cell) -> None:
        """Compute a cell and write its result."""
        start, wall = time.process_time(), time.perf_counter()
        found = self._row(cell) if self.is_row(cell) else self._search(cell)
        found |= {"cpu_seconds": time.process_time() - start, "seconds": time.perf_counter() - wall}
        write_atomically(self.file(cell), (json.dumps({"cell": str(cell), **found}, indent=2) + "\n").encode())

    # Searches

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

    def _searched(self, kind: str, seed: int) -> Path:
        cell = Cell(f"search_{kind}", seed)
        return self.folder / "searches" / f"{cell}-{self.digest(cell)}"

    def _search(self, cell: Cell) -> dict[str, Any]:
        kind, args = cell.kind.removeprefix("search_"), self.arguments_of(cell)
        args.output_dir = str(self._searched(kind, cell.seed))
        model = build_model(self.model_args, self.data, cell.seed)
        trainer = (LotteryTrainer if kind == "imp" else WinningSignTrainer)(model=model, args=args, **self.arguments)
        trainer.train(resume_from_checkpoint=True)
        state = json.loads((Path(args.output_dir) / "lottery_state.json").read_text())
        steps = sum(record["steps"] for record in state["finished"])
        first, last = trainer.history[0]["metrics"], trainer.history[-1]
        return {
            "dense": first[measure_of(first)], "sparsity": last["sparsity"], "steps": steps,
            "sign_flips": [record["metrics"]["sign_flips"] for record in trainer.history],
        }  # fmt: skip

    # Rows

    @cached_property
    def data(self) -> Data:
        """The data of the task."""
        return load_task_data(self.model_args, self.data_args, self.model_args.load_config())

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """What every Trainer takes besides network and settings."""
        return trainer_arguments(self.model_args.task, self.data)

    def _row(self, cell: Cell) -> dict[str, Any]:
        ticket = Ticket.from_pretrained(self._searched("imp", cell.seed) / "ticket")
        network = build_model(self.model_args, self.data, cell.seed)
        cast(Snapshot, ticket.rewind).restore_(network)
        mask, signed, permutation = self._reused(cell, ticket, network)
        solution, found = self._train(cell, network, mask, ticket.rewind.step)
        if signed is not None:
            found["kept_signs"] = signed.agreement(solution).total
        if mask is not None:
            overlap = mask.overlap(ticket.mask)
            found |= {"sparsity": mask.sparsity, "overlap": overlap.iou, "chance": overlap.chance}
        if permutation is not None and permutation.report is not None:
            groups = permutation.report.groups.values()
            found["correlation"] = sum(group.matched for group in groups) / len(groups)
        if (end := ROWS[cell.kind][2]) is not None:
            source = cell.seed if end == "lth" else self.source(cell.seed)
            found["barrier"] = self._barrier(solution, Cell(end, source), permutation)
        return found

    def _reused(
        self, cell: Cell, ticket: Ticket, network: PreTrainedModel
    ) -> tuple[Mask | None, SignedMask | None, Permutation | None]:
        """The mask that a row trains under, its signs, which ``network`` has then, and how both were aligned."""
        if cell.kind == "dense":
            return None, None, None
        if cell.kind == "lth":
            return ticket.mask, None, None
        if cell.kind in SEARCHES:
            own = Ticket.from_pretrained(self._searched(cell.kind, cell.seed) / "ticket")
            own.apply_(network)
            return own.mask, None, None
        if (end := cast(str, ROWS[cell.kind][2])) in SEARCHES:
            return self._reused_signs(cell, end, network)
        mask = Ticket.from_pretrained(self._searched("imp", self.source(cell.seed)) / "ticket").mask
        if cell.kind in ("naive", "random"):
            return mask if cell.kind == "naive" else mask.shuffled(cell.seed), None, None
        permutation = self._permutation(cell.kind.removeprefix("permuted_"), cell.seed, network)
        return permutation(mask), None, permutation

    def _reused_signs(
        self, cell: Cell, search: str, network: PreTrainedModel
    ) -> tuple[Mask, SignedMask | None, Permutation | None]:
        signed = SignedMask.from_pretrained(self._searched(search, self.source(cell.seed)) / "signed")
        permutation = None
        if cell.kind == "aws_mask":
            return signed.mask, None, None
        if cell.kind == "permuted_signs":
            permutation = self._permutation("activation", cell.seed, network)
            signed = SignedMask(permutation(signed.mask), permutation(dict(signed)), signed.medians)
        if cell.kind == "random_signs":
            signed = signed.randomized(cell.seed)
        signed.transfer_(network)
        return signed.mask, signed, permutation

    def _train(
        self, cell: Cell, network: PreTrainedModel, mask: Mask | None, step: int
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        args = self.arguments_of(cell)
        args.output_dir = str(self.folder / "trainings" / str(cell))
        set_seed(cell.seed)
        trainer = SparseTrainer(model=network, args=args, mask=mask, first_step=step, **self.arguments)
        steps = trainer.train().global_step
        metrics = trainer.evaluate()
        if cell.kind in ("lth", "lrr", "aws"):  # barriers lead here
            Snapshot.capture(network).save(self._solution(cell))
        return network, {"measure": metrics[measure_of(metrics)], "steps": steps}

    def _solution(self, cell: Cell) -> Path:
        return self.folder / "solutions" / f"{cell}-{self.digest(cell)}.safetensors"

    def _trainer(self, model: PreTrainedModel, seed: int) -> SparseTrainer:
        args = copy.copy(self.args)
        args.seed, args.output_dir = seed, str(self.folder / "trainings")
        return SparseTrainer(model=model, args=args, **self.arguments)

    def _permutation(self, how: str, target: int, like: PreTrainedModel) -> Permutation:
        """The permutation that carries the source's dense network to the target's, trained or as they were rewound."""
        pair: list[Any] = []
        for seed in (self.source(target), target):
            folder = self._searched("imp", seed)
            if how == "early":
                model = copy.deepcopy(like)
                cast(Snapshot, Ticket.from_pretrained(folder / "ticket").rewind).restore_(model)
            else:
                model = type(like).from_pretrained(folder / "level-00/trained")
            pair.append(model)
        trainer = self._trainer(pair[1], target)
        pair[0].to(self.args.device)
        spec = discover(pair[0], example_batch(trainer))
        if how == "residual":
            batches = training_batches(trainer, self.which.match_batches * self.args.per_device_train_batch_size)
            options: dict[str, Any] = {"batches": batches, "seed": target, "residual": True}
            return activation_matching(spec, source=pair[0], target=pair[1], **options)
        method = "weight" if how == "weight" else "activation"
        return match(method, spec, pair[0], pair[1], trainer, self.which.match_batches)

    def _barrier(self, solution: PreTrainedModel, end: Cell, permutation: Permutation | None) -> float:
        """The error barrier to a ticket's own solution; a source's is permuted as its signs were."""
        other = copy.deepcopy(solution)
        Snapshot.load(self._solution(end)).restore_(other)
        if permutation is not None and end.kind != "lth":
            permute_(other, permutation)
        judge = Judge(self._trainer(solution, end.seed), self.model_args.task, 512)
        with torch.no_grad():
            return error_barrier(solution, other, judge, points=7).barrier
