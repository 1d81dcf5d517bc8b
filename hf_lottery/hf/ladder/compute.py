"""How a cell of the transfer ladder is computed: a search for a ticket, or the final training of a row."""

from __future__ import annotations

import copy
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, set_seed

from ...alignment.match import Match
from ...connectivity.barrier import error_barrier
from ...masks.mask import Mask
from ...signs.norms import norm_parameters
from ...storage.atomic import write_atomically
from ...structured.unit_mask import UnitMask
from ...symmetry.discovery import discover
from ...symmetry.permutation import permute_
from ...symmetry.spec import PermutationSpec
from ...training.snapshot import Snapshot
from ..commands.report_sections import measure_of
from ..tasks.batches import example_batch, training_batches
from ..tasks.judge import Judge
from ..tasks.models import build_model
from ..trainers.callbacks import SnapshotCallback
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.sparse_trainer import SparseTrainer, changed
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .cells import Cell, Ladder
from .matchings import MATCHINGS, Pairing
from .rows import ROWS, Reused, Target

_ENDS = {row.end for row in ROWS.values()}  # barriers lead to the solutions of these rows


def compute_cell(ladder: Ladder, cell: Cell) -> None:
    """Compute a cell and write its result.

    Args:
        ladder: The ladder of the cell.
        cell: A cell that has no result yet, while all that it needs have one.
    """
    start, wall = time.process_time(), time.perf_counter()
    found = _row(ladder, cell) if ladder.is_row(cell) else _search(ladder, cell)
    found |= {"cpu_seconds": time.process_time() - start, "seconds": time.perf_counter() - wall}
    write_atomically(ladder.file(cell), (json.dumps({"cell": str(cell), **found}, indent=2) + "\n").encode())


def _search(ladder: Ladder, cell: Cell) -> dict[str, Any]:
    kind, args = cell.kind.removeprefix("search_"), ladder.arguments_of(cell)
    args.output_dir = str(ladder.searched(kind, cell.seed))
    model = build_model(ladder.model_args, ladder.data, cell.seed)
    make = ladder.trainers["search" if kind == "imp" else "signs"]
    trainer = cast(LotteryTrainer, make(model=model, args=args, **ladder.arguments))
    if kind == "imp" and ladder.keeps_start:
        step = _start_step(ladder, trainer)
        with changed(args, **trainer.level_arguments(0)):
            trainer.check_step(step, trainer.count_steps()[1])
        trainer.add_callback(_KeepStart(step, ladder.start_file(cell.seed)))
    trainer.train(resume_from_checkpoint=True)
    state = json.loads((Path(args.output_dir) / "lottery_state.json").read_text())
    steps = sum(record["steps"] for record in state["finished"])
    measures = [record["metrics"] for record in trainer.history]
    found = {
        "levels": [[record["sparsity"], record["metrics"][measure_of(measures[0])]] for record in trainer.history],
        "steps": steps, "sign_flips": [metrics["sign_flips"] for metrics in measures],
    }  # fmt: skip
    if isinstance(trainer, WinningSignTrainer) and trainer.norms:
        found["norm_path"] = [[alpha, metrics[measure_of(metrics)]] for alpha, metrics in trainer.norm_path(points=5)]
        found["initial_norms"] = found["norm_path"][-1][1]
    return found


class _KeepStart(SnapshotCallback):
    """Saves where rows start, in the dense training, which comes first."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not self.path.exists():
            super().on_step_end(args, state, control, model=model, **kwargs)


def _start_step(ladder: Ladder, trainer: SparseTrainer) -> int:
    """Return the optimizer step that rows start at."""
    return ladder.start_point().in_steps(steps_per_epoch=trainer.count_steps()[0])


def _started(ladder: Ladder, seed: int) -> Snapshot:
    """Load the weights of a network where its rows start."""
    if ladder.start == "init":
        return Snapshot.capture(build_model(ladder.model_args, ladder.data, seed))
    return Snapshot.load(ladder.start_file(seed))


def _row(ladder: Ladder, cell: Cell) -> dict[str, Any]:
    network = build_model(ladder.model_args, ladder.data, cell.seed)
    if ladder.reuses(cell):
        _started(ladder, cell.seed).restore_(network)
    target = _target(ladder, cell, network)
    reused = ROWS[cell.kind].reuse(target)
    found = _train(ladder, cell, network, reused.mask)
    if reused.signed is not None:
        found["kept_signs"] = reused.signed.agreement(network).overall
    if reused.mask is not None:
        found["sparsity"] = reused.mask.sparsity
        if isinstance(reused.mask, UnitMask):
            found["unit_sparsity"] = reused.mask.unit_sparsity
        if Cell("search_imp", cell.seed) in ladder.needs(cell):
            overlap = reused.mask.overlap(target.mask("imp", cell.seed))
            found |= {"overlap": overlap.iou, "chance": overlap.chance}
    if reused.match is not None:
        found["match_seconds"] = reused.match_seconds
        groups = reused.match.report.groups
        found["correlation"] = sum(group.matched for group in groups.values()) / len(groups)
        found["match"] = {name: [group.identity, group.matched] for name, group in groups.items()}
    if cell.kind == "naive" or reused.match is not None:
        search = "imp" if reused.signed is None else "aws"
        found["dense_barrier"] = _dense_barrier(ladder, target, reused.match, search)
    if (end := ladder.end(cell)) is not None:
        found["barrier"] = _barrier(ladder, network, end, reused)
    return found


def _target(ladder: Ladder, cell: Cell, network: PreTrainedModel) -> Target:
    chosen = {"include": ladder.args.norm_include, "exclude": ladder.args.norm_exclude}
    return Target(
        network, cell.seed, ladder.source(cell.seed), ladder.level, ladder.searched, partial(_started, ladder),
        partial(_match, ladder, cell.seed), partial(norm_parameters, **chosen),
        lambda: _spec(_trainer(ladder, network, cell.seed)),
    )  # fmt: skip


def row_trainer(
    ladder: Ladder, cell: Cell, network: PreTrainedModel, *, folder: str | Path, mask: Mask | None = None
) -> SparseTrainer:
    """Make the Trainer of a row.

    Args:
        ladder: The ladder.
        cell: The row.
        network: The network where the row begins.
        folder: The folder that the Trainer makes.
        mask: The mask to train under.

    Raises:
        ValueError: Rows start where the dense training has ended.
    """
    args = ladder.arguments_of(cell)
    args.output_dir = str(folder)
    trainer = ladder.trainers["row"](model=network, args=args, mask=mask, **ladder.arguments)
    if not ladder.reuses(cell):
        return trainer
    step = _start_step(ladder, trainer)
    if ladder.which.row_learning_rate is None:
        trainer.first_step = step
    elif ladder.which.row_epochs is None:  # the steps that are left, on a schedule of their own
        steps = trainer.count_steps()[1]
        trainer.check_step(step, steps)
        args.max_steps = steps - step
    return trainer


def _train(ladder: Ladder, cell: Cell, network: PreTrainedModel, mask: Mask | None) -> dict[str, Any]:
    set_seed(cell.seed)
    trainer = row_trainer(ladder, cell, network, folder=ladder.folder / "trainings" / str(cell), mask=mask)
    steps = trainer.train().global_step
    metrics = trainer.evaluate()
    if cell.kind in _ENDS:
        Snapshot.capture(network).save(ladder.solution(cell))
    return {"measure": metrics[measure_of(metrics)], "steps": steps}


def _trainer(ladder: Ladder, model: PreTrainedModel, seed: int) -> SparseTrainer:
    """Make a trainer that only lends its data and its loss."""
    args = copy.copy(ladder.args)
    args.seed, args.output_dir = seed, str(ladder.folder / "trainings")
    return SparseTrainer(model=model, args=args, **ladder.arguments)


def _spec(trainer: SparseTrainer) -> PermutationSpec:
    return discover(trainer.network, example_batch(trainer))


def _match(ladder: Ladder, seed: int, how: str, source: PreTrainedModel, target: PreTrainedModel) -> Match:
    trainer = _trainer(ladder, target, seed)
    cast(Any, source).to(ladder.args.device)
    samples = ladder.which.match_batches * ladder.args.train_batch_size
    pairing = Pairing(
        spec=_spec(trainer), source=source, target=target,
        batches=lambda labels: training_batches(trainer, samples, labels=labels), loss=trainer.loss, seed=seed,
    )  # fmt: skip
    return MATCHINGS["activation" if how == "early" else how](pairing)


def _dense_barrier(ladder: Ladder, target: Target, match: Match | None, search: str) -> float:
    """Measure the error barrier between the dense networks of source and target, as they were matched."""
    source, other = (target.trained(search, seed, level=0) for seed in (target.source, target.seed))
    if match is not None:
        permute_(source, match.permutation)
    cast(Any, source).to(ladder.args.device)
    return _between(ladder, source, other, seed=target.seed, points=5)


def _barrier(ladder: Ladder, solution: PreTrainedModel, end: Cell, reused: Reused) -> float:
    """Measure the error barrier to the solution of another row; a source's is permuted as its signs were."""
    other = copy.deepcopy(solution)
    Snapshot.load(ladder.solution(end)).restore_(other)
    if reused.match is not None and end.kind != "lth":
        permute_(other, reused.match.permutation)
    return _between(ladder, solution, other, seed=end.seed, points=7)


def _between(ladder: Ladder, first: PreTrainedModel, second: PreTrainedModel, *, seed: int, points: int) -> float:
    """Measure the error barrier between two networks on the test data; ``seed`` draws the data of batch norms."""
    judge = Judge(_trainer(ladder, second, seed), ladder.model_args.task, 512)
    with torch.no_grad():
        return error_barrier(first, second, judge, points=points).barrier
