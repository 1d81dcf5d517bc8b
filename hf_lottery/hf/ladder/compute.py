"""How a cell of the transfer ladder is computed: a search for a ticket, or the final training of a row."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, set_seed

from ...alignment.matching import activation_matching
from ...connectivity.barrier import error_barrier
from ...masks.mask import Mask
from ...signs.signed_mask import SignedMask
from ...storage.atomic import write_atomically
from ...symmetry.discovery import discover
from ...symmetry.permutation import Permutation, permute_
from ...training.snapshot import Snapshot
from ..commands.align_mask import match
from ..commands.common import build_model
from ..commands.connectivity import Judge
from ..commands.report_sections import measure_of
from ..hub.ticket import Ticket
from ..tasks.batches import example_batch, training_batches
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.sparse_trainer import SparseTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .cells import ROWS, SEARCHES, Cell, Ladder


def compute(ladder: Ladder, cell: Cell) -> None:
    """Compute a cell and write its result."""
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
    return {
        "dense": first[measure_of(first)], "sparsity": last["sparsity"], "steps": steps,
        "sign_flips": [record["metrics"]["sign_flips"] for record in trainer.history],
    }  # fmt: skip


def _row(ladder: Ladder, cell: Cell) -> dict[str, Any]:
    ticket = Ticket.from_pretrained(ladder.searched("imp", cell.seed) / "ticket")
    network = build_model(ladder.model_args, ladder.data, cell.seed)
    cast(Snapshot, ticket.start).restore_(network)
    mask, signed, permutation = _reused(ladder, cell, ticket, network)
    solution, found = _train(ladder, cell, network, mask, ticket.start.step)
    if signed is not None:
        found["kept_signs"] = signed.agreement(solution).overall
    if mask is not None:
        overlap = mask.overlap(ticket.mask)
        found |= {"sparsity": mask.sparsity, "overlap": overlap.iou, "chance": overlap.chance}
    if permutation is not None and permutation.report is not None:
        groups = permutation.report.groups.values()
        found["correlation"] = sum(group.matched for group in groups) / len(groups)
    if (end := ROWS[cell.kind][2]) is not None:
        source = cell.seed if end == "lth" else ladder.source(cell.seed)
        found["barrier"] = _barrier(ladder, solution, Cell(end, source), permutation)
    return found


def _reused(
    ladder: Ladder, cell: Cell, ticket: Ticket, network: PreTrainedModel
) -> tuple[Mask | None, SignedMask | None, Permutation | None]:
    """The mask that a row trains under, its signs, which ``network`` has then, and how both were aligned."""
    if cell.kind == "dense":
        return None, None, None
    if cell.kind == "lth":
        return ticket.mask, None, None
    if cell.kind in SEARCHES:
        own = Ticket.from_pretrained(ladder.searched(cell.kind, cell.seed) / "ticket")
        own.apply_(network)
        return own.mask, None, None
    if (end := cast(str, ROWS[cell.kind][2])) in SEARCHES:
        return _reused_signs(ladder, cell, end, network)
    mask = Ticket.from_pretrained(ladder.searched("imp", ladder.source(cell.seed)) / "ticket").mask
    if cell.kind in ("naive", "random"):
        return mask if cell.kind == "naive" else mask.shuffled(cell.seed), None, None
    permutation = _permutation(ladder, cell.kind.removeprefix("permuted_"), cell.seed, network)
    return permutation(mask), None, permutation


def _reused_signs(
    ladder: Ladder, cell: Cell, search: str, network: PreTrainedModel
) -> tuple[Mask, SignedMask | None, Permutation | None]:
    signed = SignedMask.from_pretrained(ladder.searched(search, ladder.source(cell.seed)) / "signed")
    permutation = None
    if cell.kind == "aws_mask":
        return signed.mask, None, None
    if cell.kind == "permuted_signs":
        permutation = _permutation(ladder, "activation", cell.seed, network)
        signed = SignedMask(permutation(signed.mask), permutation(dict(signed)), signed.medians)
    if cell.kind == "random_signs":
        signed = signed.randomized(cell.seed)
    signed.transfer_(network)
    return signed.mask, signed, permutation


def _train(
    ladder: Ladder, cell: Cell, network: PreTrainedModel, mask: Mask | None, step: int
) -> tuple[PreTrainedModel, dict[str, Any]]:
    args = ladder.arguments_of(cell)
    args.output_dir = str(ladder.folder / "trainings" / str(cell))
    set_seed(cell.seed)
    trainer = SparseTrainer(model=network, args=args, mask=mask, first_step=step, **ladder.arguments)
    steps = trainer.train().global_step
    metrics = trainer.evaluate()
    if cell.kind in ("lth", "lrr", "aws"):  # barriers lead here
        Snapshot.capture(network).save(ladder.solution(cell))
    return network, {"measure": metrics[measure_of(metrics)], "steps": steps}


def _trainer(ladder: Ladder, model: PreTrainedModel, seed: int) -> SparseTrainer:
    args = copy.copy(ladder.args)
    args.seed, args.output_dir = seed, str(ladder.folder / "trainings")
    return SparseTrainer(model=model, args=args, **ladder.arguments)


def _permutation(ladder: Ladder, how: str, target: int, like: PreTrainedModel) -> Permutation:
    """The permutation that carries the source's dense network to the target's, trained or as they were rewound."""
    pair: list[Any] = []
    for seed in (ladder.source(target), target):
        folder = ladder.searched("imp", seed)
        if how == "early":
            model = copy.deepcopy(like)
            cast(Snapshot, Ticket.from_pretrained(folder / "ticket").start).restore_(model)
        else:
            model = type(like).from_pretrained(folder / "level-00/trained")
        pair.append(model)
    trainer = _trainer(ladder, pair[1], target)
    pair[0].to(ladder.args.device)
    spec = discover(pair[0], example_batch(trainer))
    if how == "residual":
        batches = training_batches(trainer, ladder.which.match_batches * ladder.args.per_device_train_batch_size)
        options: dict[str, Any] = {"batches": batches, "seed": target, "residual": True}
        return activation_matching(spec, source=pair[0], target=pair[1], **options)
    method = "weight" if how == "weight" else "activation"
    return match(method, spec, pair[0], pair[1], trainer, ladder.which.match_batches)


def _barrier(ladder: Ladder, solution: PreTrainedModel, end: Cell, permutation: Permutation | None) -> float:
    """The error barrier to a ticket's own solution; a source's is permuted as its signs were."""
    other = copy.deepcopy(solution)
    Snapshot.load(ladder.solution(end)).restore_(other)
    if permutation is not None and end.kind != "lth":
        permute_(other, permutation)
    judge = Judge(_trainer(ladder, solution, end.seed), ladder.model_args.task, 512)
    with torch.no_grad():
        return error_barrier(solution, other, judge, points=7).barrier
