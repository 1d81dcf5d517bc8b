"""Bounds of the numbers that a Trainer takes, which it would find out only in the middle of its work, or never."""

from __future__ import annotations

import math
from typing import Any

_SEEDS = ("seed", "data_seed")
_MOST_SEED = 2**32 - 1  # of NumPy
_LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "eval_accumulation_steps": 1, "dataloader_num_workers": 0, "dataloader_prefetch_factor": 1, "learning_rate": 0,
    "fine_tuning_learning_rate": 0, "weight_decay": 0, "adam_epsilon": 0, "score_batches": 1,
    "recalibration_batches": 1,
}  # fmt: skip
_POSITIVE = ("num_train_epochs", "dense_epochs", "level_epochs")
_FRACTIONS = ("label_smoothing_factor", "min_density")
_BELOW_ONE = ("adam_beta1", "adam_beta2")


def check_bounds(args: Any) -> None:
    """Check numbers among the settings of a training.

    Args:
        args: The settings. One that is None was not given.

    Raises:
        ValueError: A number is out of range, or is no number.
    """
    for name in _SEEDS:
        if (seed := getattr(args, name)) is not None and not 0 <= seed <= _MOST_SEED:
            raise ValueError(f"{name} must be from 0 to {_MOST_SEED}; received {seed}. Pass 0, for example.")
    for name, least in _LEAST.items():
        if (value := getattr(args, name)) is not None and not least <= value < math.inf:
            raise ValueError(f"{name} must be at least {least}; received {value}.")
    for name in _POSITIVE:
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive; received {value}.")
    for name in _FRACTIONS:
        if not 0 <= (value := getattr(args, name)) <= 1:
            raise ValueError(f"{name} must be in [0, 1]; received {value}.")
    for name in _BELOW_ONE:
        if not 0 <= (value := getattr(args, name)) < 1:
            raise ValueError(f"{name} must be in [0, 1); received {value}.")
    if args.max_steps != -1 and args.max_steps < 1:
        raise ValueError(f"max_steps must be positive, or -1 to count epochs; received {args.max_steps}.")
