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
from ...alignment.matching import activation_matching
from ...connectivity.barrier import error_barrier
from ...masks.mask import Mask
from ...signs.norms import norm_parameters
from ...storage.atomic import write_atomically
from ...symmetry.discovery import discover
from ...symmetry.permutation import permute_
from ...training.snapshot import Snapshot
from ..commands.align_mask import match_networks
from ..commands.report_sections import measure_of
from ..hub.ticket import Ticket
from ..tasks.batches import example_batch, training_batches
from ..tasks.judge import Judge
from ..tasks.models import build_model
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.sparse_trainer import SparseTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .cells import Cell, Ladder
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
    trainer = (LotteryTrainer if kind == "imp" else WinningSignTrainer)(model=model, args=args, **ladder.arguments)
    trainer.train(resume_from_checkpoint=True)
    state = json.loads((Path(args.output_dir) / "lottery_state.json").read_text())
    steps = sum(record["steps"] for record in state["finished"])
    first, last = trainer.history[0]["metrics"], trainer.history[-1]
    found = {
        "dense": first[measure_of(first)], "sparsity": last["sparsity"], "steps": steps,
        "sign_flips": [record["metrics"]["sign_flips"] for record in trainer.history],
    }  # fmt: skip
    if isinstance(trainer, WinningSignTrainer) and trainer.norms:
        _, metrics = trainer.norm_path(points=2)[-1]
        found["initial_norms"] = metrics[measure_of(metrics)]
    return found


def _row(ladder: Ladder, cell: Cell) -> dict[str, Any]:
    ticket = Ticket.from_pretrained(ladder.searched("imp", cell.seed) / "ticket")
    network = build_model(ladder.model_args, ladder.data, cell.seed)
    cast(Snapshot, ticket.start).restore_(network)
    reused = ROWS[cell.kind].reuse(_target(ladder, cell, network))
    found = _train(ladder, cell, network, reused.mask, ticket.start.step)
    if reused.signed is not None:
        found["kept_signs"] = reused.signed.agreement(network).overall
    if reused.mask is not None:
        overlap = reused.mask.overlap(ticket.mask)
        found |= {"sparsity": reused.mask.sparsity, "overlap": overlap.iou, "chance": overlap.chance}
    if reused.match is not None:
        groups = reused.match.report.groups
        found["correlation"] = sum(group.matched for group in groups.values()) / len(groups)
        found["match"] = {name: [group.identity, group.matched] for name, group in groups.items()}
    if (end := ladder.end(cell)) is not None:
        found["barrier"] = _barrier(ladder, network, end, reused)
    return found


def _target(ladder: Ladder, cell: Cell, network: PreTrainedModel) -> Target:
    chosen = {"include": ladder.args.norm_include, "exclude": ladder.args.norm_exclude}
    return Target(
        network, cell.seed, ladder.source(cell.seed), ladder.searched, partial(_match, ladder, cell.seed),
        partial(norm_parameters, **chosen),
    )  # fmt: skip


def _train(ladder: Ladder, cell: Cell, network: PreTrainedModel, mask: Mask | None, step: int) -> dict[str, Any]:
    args = ladder.arguments_of(cell)
    args.output_dir = str(ladder.folder / "trainings" / str(cell))
    set_seed(cell.seed)
    trainer = SparseTrainer(model=network, args=args, mask=mask, first_step=step, **ladder.arguments)
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


def _match(ladder: Ladder, seed: int, how: str, source: PreTrainedModel, target: PreTrainedModel) -> Match:
    trainer = _trainer(ladder, target, seed)
    cast(Any, source).to(ladder.args.device)
    spec = discover(source, example_batch(trainer))
    if how == "residual":
        samples = ladder.which.match_batches * ladder.args.per_device_train_batch_size
        options: dict[str, Any] = {"batches": training_batches(trainer, samples), "seed": seed, "residual": True}
        return activation_matching(spec, source=source, target=target, **options)
    method = "weight" if how == "weight" else "activation"
    # Where streams stay, it is this row's choice; the row "permuted_residual" moves them.
    return match_networks(method, spec, source, target, trainer, ladder.which.match_batches, residual=False)


def _barrier(ladder: Ladder, solution: PreTrainedModel, end: Cell, reused: Reused) -> float:
    """Measure the error barrier to the solution of another row; a source's is permuted as its signs were."""
    other = copy.deepcopy(solution)
    Snapshot.load(ladder.solution(end)).restore_(other)
    if reused.match is not None and end.kind != "lth":
        permute_(other, reused.match.permutation)
    judge = Judge(_trainer(ladder, solution, end.seed), ladder.model_args.task, 512)
    with torch.no_grad():
        return error_barrier(solution, other, judge, points=7).barrier
