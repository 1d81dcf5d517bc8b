"""What is left of a ladder, and what it will cost."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan import plan_search
from ..plan.search import time_text
from ..tasks.models import build_model
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .cells import Cell, Ladder
from .sweep import Point


def plan_ladders(points: Sequence[Point]) -> str:
    """Describe the cells, the steps and the time that are left; nothing is written.

    Args:
        points: The ladders.
    """
    left = {point: cells for point in points if (cells := _left(point.ladder))}
    if not left:
        return "Nothing is left to do."
    costs = [_cost(point.ladder, cells) for point, cells in left.items()]
    lines = [f"{point.name or 'the ladder'}: {text}" for point, (text, _) in zip(left, costs, strict=True)]
    time = time_text(sum(seconds for _, seconds in costs))
    lines.append(
        f"One process needs roughly {time} for all forward and backward passes, estimated from one that was measured; "
        "optimizer, matching and evaluation come on top."
    )
    return "\n".join(lines)


def _left(ladder: Ladder) -> list[Cell]:
    return [cell for cell in ladder.cells if ladder.result(cell) is None]


def _cost(ladder: Ladder, left: Sequence[Cell]) -> tuple[str, float]:
    """Describe what is left of one ladder, and estimate the seconds of its forward and backward passes."""
    searches = [cell for cell in left if not ladder.is_row(cell)]
    # The search "imp" tells how long a final training is, even if its own cells are finished.
    kinds, seed = {"search_imp", *(cell.kind for cell in searches)}, ladder.which.seeds[0]
    costs = {kind: plan_search(_trainer(ladder, Cell(kind, seed)), matching=False) for kind in kinds}
    search = costs["search_imp"]
    seconds, final = (search.seconds or 0) / search.steps, search.levels[-1].steps
    steps = sum(final if ladder.is_row(cell) else costs[cell.kind].steps for cell in left)
    text = (
        f"{len(left)} of {len(ladder.cells)} cells are left: {len(searches)} searches and {len(left) - len(searches)} "
        f"final trainings, {steps:,} optimizer steps"
    )
    return text, steps * seconds


def _trainer(ladder: Ladder, cell: Cell) -> LotteryTrainer:
    args = ladder.arguments_of(cell)
    args.output_dir = "."  # the Trainer makes its folder at once
    kind = LotteryTrainer if args.norm_interpolation is None else WinningSignTrainer
    model = build_model(ladder.model_args, ladder.data, cell.seed)
    return kind(model=model, args=args, **ladder.arguments)
