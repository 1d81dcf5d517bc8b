"""Checks of a LotteryTrainer's settings before the first training, for what would otherwise fail after it."""

from __future__ import annotations

from torch import nn
from transformers import Trainer

from ...networks.display import first_names
from ...pruning.evidence import without_inputs
from ...pruning.scores import Score, check_score, needed_by
from ...training.search import check_trainable
from ..prunable_weights import Prunable


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
    if trainer.args.enable_jit_checkpoint:
        raise ValueError(
            "enable_jit_checkpoint must be off, because it ends a level early and the search would prune it; received "
            "True. Save more often (save_steps), and resume after the signal."
        )
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(trainer.args, name):
            raise ValueError(
                f"{name} must be off, because it casts the weights that are pruned and rewound; received True. "
                "Use bf16 or fp16, which do not cast them."
            )


def check_search(model: nn.Module, weights: Prunable, *, score: Score) -> None:
    """Check that every level can be trained and scored.

    Args:
        model: The model.
        weights: The weights to prune.
        score: The score.

    Raises:
        ValueError: A level cannot be trained, or the score needs evidence that it does not declare or that cannot be
            gathered.
    """
    check_trainable(model, weights)
    _check_evidence(model, weights, score)
    check_score(score, weights)


def _check_evidence(model: nn.Module, weights: Prunable, score: Score) -> None:
    """Raise ValueError if the score reads the input of a weight that no module shows."""
    if "input_norm" in needed_by(score) and (unseen := without_inputs(model, weights)):
        raise ValueError(
            f"{getattr(score, '__name__', 'the score')} must be given the input norm of every weight; received "
            f"{first_names(unseen)}, which no linear or convolution module shows (those inside nn.MultiheadAttention "
            "are never called). Leave them out with exclude=[...] (of units, name others with structured_groups), or "
            "choose another score."
        )
