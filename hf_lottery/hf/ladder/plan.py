"""What is left of a ladder, and what it will cost."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan import plan_search
from ..plan.search import time_text
from ..tasks.models import build_model
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .cells import Cell, Ladder
from .compute import row_trainer
from .pilot import settle
from .sweep import Point, points


class _Left(Exception):
    """A cell has no result yet."""


def plan_ladders(command: Sequence[str]) -> str:
    """Describe the cells, the steps and the time that are left; nothing is computed.

    Args:
        command: The command line. With ``--scan``, the plan is of the ladder that the pilot chose, if it is finished.
    """
    which, pilot = Ladder.of(command).which, ""
    if which.scan:
        try:
            command, _ = settle(command, _read)
        except _Left:
            pilot = (
                f"The pilot comes on top. It trains {len(which.pilot_seeds)} networks, and may choose another sparsity "
                "and up to eight times the epochs."
            )
    texts, seconds = _costs(points(command))
    if not texts:
        return pilot or "Nothing is left to do."
    time = (
        f"One process needs roughly {time_text(seconds)} for all forward and backward passes, estimated from one that "
        "was measured; optimizer, matching and evaluation come on top."
    )
    return "\n".join(filter(None, [*texts, time, pilot]))


def _read(command: Sequence[str]) -> None:
    """Check that every cell of a command line has a result."""
    if any(point.ladder.result(cell) is None for point in points(command) for cell in point.ladder.cells):
        raise _Left


def _costs(asked: Sequence[Point]) -> tuple[list[str], float]:
    """Describe what is left of each ladder, and estimate the seconds of all forward and backward passes.

    A cell that several ladders share is counted with the first.
    """
    texts, seconds, counted = [], 0.0, set()
    for point in asked:
        files = {cell: point.ladder.file(cell) for cell in point.ladder.cells}
        own = [cell for cell, file in files.items() if file not in counted]
        counted |= {*files.values()}
        if left := [cell for cell in own if point.ladder.result(cell) is None]:
            text, time = _cost(point.ladder, left)
            texts.append(f"{point.name or 'the ladder'}: {len(left)} of {len(own)} cells are left: {text}")
            seconds += time
    return texts, seconds


def _cost(ladder: Ladder, left: Sequence[Cell]) -> tuple[str, float]:
    """Describe the cells that are left of one ladder, and estimate the seconds of their passes."""
    searches = [cell for cell in left if not ladder.is_row(cell)]
    rows = [cell for cell in left if ladder.is_row(cell)]
    # A pass is measured with the search "imp", even if its own cells are finished.
    kinds, seed = {"search_imp", *(cell.kind for cell in searches)}, ladder.which.seeds[0]
    costs = {kind: plan_search(_trainer(ladder, Cell(kind, seed)), matching=False) for kind in kinds}
    lengths = {kind: _row_steps(ladder, Cell(kind, seed)) for kind in {cell.kind for cell in rows}}
    seconds = (costs["search_imp"].seconds or 0) / costs["search_imp"].steps
    steps = sum(costs[cell.kind].steps for cell in searches) + sum(lengths[cell.kind] for cell in rows)
    text = f"{len(searches)} searches and {len(rows)} final trainings, {steps:,} optimizer steps"
    return text, steps * seconds


def _row_steps(ladder: Ladder, cell: Cell) -> int:
    trainer = row_trainer(ladder, cell, build_model(ladder.model_args, ladder.data, cell.seed), folder=".")
    return trainer.count_steps()[1] - trainer.first_step


def _trainer(ladder: Ladder, cell: Cell) -> LotteryTrainer:
    args = ladder.arguments_of(cell)
    args.output_dir = "."  # the Trainer makes its folder at once
    kind = LotteryTrainer if args.norm_interpolation is None else WinningSignTrainer
    model = build_model(ladder.model_args, ladder.data, cell.seed)
    return kind(model=model, args=args, **ladder.arguments)
