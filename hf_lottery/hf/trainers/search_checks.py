"""Checks of a LotteryTrainer's settings before the first training, for what would otherwise fail after it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Trainer

from ...pruning.scopes import Scope
from ...pruning.scores import Score, check_score, needed_by
from ...training.levels import check_levels
from ..prunable_weights import Prunable

_UNSEEN = ("experts", "MultiheadAttention")  # no module's input is the input of these weights


def check_arguments(trainer: Trainer, *, knows_norms: bool) -> None:
    """Check that the Trainer can train one level after the other.

    Args:
        trainer: The Trainer.
        knows_norms: Whether it can interpolate norms.

    Raises:
        ValueError: An argument is for another Trainer, or would be wrong for the levels after the first.
    """
    for name in ("norm_interpolation", "norm_include", "norm_exclude"):
        if not knows_norms and (given := getattr(trainer.args, name, None)) is not None:
            raise ValueError(f"{name} must be left out here; received {given!r}. Use WinningSignTrainer.")
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise ValueError(
            "every level must make its own optimizer and schedule; received `optimizers`. "
            "Pass optimizer_cls_and_kwargs, or override create_optimizer."
        )
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(trainer.args, name):
            raise ValueError(
                f"{name} must be off, because it casts the weights that are pruned and rewound; received True. "
                "Use bf16 or fp16, which do not cast them."
            )


def check_search(
    weights: Prunable, sparsities: Sequence[float], *, score: Score, scope: Scope, min_density: float
) -> None:
    """Check that every level can be scored and pruned.

    Args:
        weights: The weights to prune.
        sparsities: The sparsity of every level that is pruned.
        score: The score.
        scope: Which weights compete with each other.
        min_density: Smallest fraction of every parameter to keep.

    Raises:
        ValueError: A level cannot be pruned, or the score needs evidence that it does not declare or that cannot be
            gathered.
    """
    check_levels(weights, sparsities, scope=scope, min_density=min_density)
    _check_evidence(score, weights)
    check_score(score, weights)


def _check_evidence(score: Score, weights: Prunable) -> None:
    """Raise ValueError for the gradient of a frozen weight, or the input of a weight that no module shows."""
    name_of_score, needed = getattr(score, "__name__", "the score"), needed_by(score)
    for name, weight in weights.items():
        if "gradient" in needed and not weight.requires_grad:
            raise ValueError(f"{name_of_score} needs the gradient of {name!r}, which is frozen. Exclude it.")
        if "input_norm" in needed and weights.kinds[name] in _UNSEEN:
            raise ValueError(
                f"{name_of_score} needs the inputs of {name!r}, which cannot be seen for {weights.kinds[name]} "
                "parameters. Exclude it, or choose another score."
            )
