"""Schedules: the sparsity of each level. Level 0 is dense.

A schedule takes ``sparsity``, ``levels`` and ``pruning_fraction`` and returns one sparsity for each level. You can
write your own function of these three.
"""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[..., list[float]]


def geometric(
    *, sparsity: float | None = None, levels: int | None = None, pruning_fraction: float = 0.2
) -> list[float]:
    """Remove the same share of what is left at every level.

    Args:
        sparsity: Stop at exactly this sparsity, in (0, 1); the last level removes less if needed.
        levels: Stop after this many levels of pruning. Give either this or ``sparsity``.
        pruning_fraction: Share of the remaining weights that each level removes, in (0, 1).

    Returns:
        The sparsity of level 0 (dense, 0.0), level 1, and so on.

    Raises:
        ValueError: A value is out of range, or not exactly one of ``sparsity`` and ``levels`` is given.

    Example:
        >>> geometric(sparsity=0.5, pruning_fraction=0.2)
        [0.0, 0.2, 0.36, 0.488, 0.5]

    Reference:
        Frankle and Carbin, 2019, "The Lottery Ticket Hypothesis", arXiv:1803.03635 (20 % a level).
    """
    if (sparsity is None) == (levels is None):
        raise ValueError(
            f"exactly one of sparsity and levels must be given; received sparsity={sparsity}, levels={levels}. "
            "Drop one of them."
        )
    if not 1e-6 <= pruning_fraction < 1:
        raise ValueError(f"pruning_fraction must be in (0, 1); received {pruning_fraction}. Try 0.2.")
    if levels is not None:
        _check_levels(levels)
        return [_round(1 - (1 - pruning_fraction) ** level) for level in range(levels + 1)]
    assert sparsity is not None
    check_sparsity(sparsity)
    # The tolerance keeps a target such as 0.1 + 0.2 from getting a level of its own after 0.3.
    path = [0.0]
    while (following := _round(1 - (1 - path[-1]) * (1 - pruning_fraction))) < sparsity - 1e-9:
        path.append(following)
    return [*path, sparsity]


def one_shot(*, sparsity: float | None = None, levels: int | None = None, pruning_fraction: float = 0.2) -> list[float]:
    """Train dense, then prune to ``sparsity`` in one level; ``pruning_fraction`` does not apply.

    Raises:
        ValueError: ``sparsity`` is missing or out of range, or ``levels`` is other than 1.
    """
    if sparsity is None or levels not in (None, 1):
        raise ValueError(f"one_shot must be given a sparsity and no levels; received {sparsity} and {levels}.")
    check_sparsity(sparsity)
    return [0.0, sparsity]


def cubic(*, sparsity: float | None = None, levels: int | None = None, pruning_fraction: float = 0.2) -> list[float]:
    """Remove much at first and little at the end: ``sparsity * (1 - (1 - level / levels) ** 3)``.

    ``pruning_fraction`` does not apply.

    Raises:
        ValueError: A value is out of range, or ``sparsity`` or ``levels`` is missing.

    Reference:
        Zhu and Gupta, 2017, "To prune, or not to prune", arXiv:1710.01878, equation 1 with initial sparsity 0.
    """
    if sparsity is None or levels is None:
        raise ValueError(f"cubic must be given sparsity and levels; received {sparsity} and {levels}.")
    check_sparsity(sparsity)
    _check_levels(levels)
    return [_round(sparsity * (1 - (1 - level / levels) ** 3)) for level in range(levels)] + [sparsity]


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError unless a level can be pruned to ``sparsity``."""
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity must be above 0 and below 1; received {sparsity}. Pass a fraction such as 0.8.")


def _check_levels(levels: int) -> None:
    if levels < 1:
        raise ValueError(f"levels must be at least 1; received {levels}.")


def _round(value: float) -> float:
    """Remove floating-point noise, so that a table reads 0.488. The change is far below one weight in a billion."""
    return round(value, 12)
