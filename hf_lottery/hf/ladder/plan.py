"""What is left of a ladder, and what it will cost."""

from __future__ import annotations

from collections.abc import Sequence

from ..commands.common import build_model
from ..plan import plan_search
from ..plan.search import time_text
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .cells import SEARCHES, Cell, Ladder
from .sweep import Point


def plan(points: Sequence[Point]) -> str:
    """Cells, steps and time that are left; nothing is written."""
    left = {point: cells for point in points if (cells := _left(point.ladder))}
    if not left:
        return "nothing is left to do."
    costs = [_cost(point.ladder, cells) for point, cells in left.items()]
    lines = [f"{point.name or 'the ladder'}: {text}" for point, (text, _) in zip(left, costs, strict=True)]
    time = time_text(sum(seconds for _, seconds in costs))
    lines.append(
        f"Roughly {time} of one process for all forward and backward passes, from one that was measured; optimizer, "
        "matching and evaluation come on top."
    )
    return "\n".join(lines)


def _left(ladder: Ladder) -> list[Cell]:
    return [cell for cell in ladder.cells if ladder.result(cell) is None]


def _cost(ladder: Ladder, left: Sequence[Cell]) -> tuple[str, float]:
    """What is left of one ladder, as text, and the seconds of its forward and backward passes."""
    seed = ladder.which.seeds[0]
    costs = {kind: plan_search(_trainer(ladder, Cell(f"search_{kind}", seed)), matching=False) for kind in SEARCHES}
    search = costs["imp"]
    seconds, final = (search.seconds or 0) / search.steps, search.levels[-1].steps
    steps = sum(final if ladder.is_row(cell) else costs[cell.kind.removeprefix("search_")].steps for cell in left)
    searches = sum(not ladder.is_row(cell) for cell in left)
    text = (
        f"{len(left)} of {len(ladder.cells)} cells are left: {searches} searches and {len(left) - searches} final "
        f"trainings, {steps:,} optimizer steps"
    )
    return text, steps * seconds


def _trainer(ladder: Ladder, cell: Cell) -> LotteryTrainer:
    args = ladder.arguments_of(cell)
    args.output_dir = "."  # the Trainer makes its folder at once
    kind = LotteryTrainer if args.norm_interpolation is None else WinningSignTrainer
    model = build_model(ladder.model_args, ladder.data, cell.seed)
    return kind(model=model, args=args, **ladder.arguments)
