"""Statistics of rows that were measured on the same targets: paired intervals, and the share of a gap that closes."""

from __future__ import annotations

import numpy as np
from scipy import stats


def split_pair(pair: str) -> tuple[str, str]:
    """Split a pair of rows, such as ``aws_signs-aws_mask``, into its two names.

    Raises:
        ValueError: There are not two names.
    """
    first, separator, second = pair.partition("-")
    if not first or not separator or not second or "-" in second:
        raise ValueError(f"pairs must name two rows, such as aws_signs-aws_mask; received {pair!r}.")
    return first, second


def direction(measure: str) -> int:
    """Return 1 for a measure of which more is better, such as accuracy, and -1 for a loss."""
    return -1 if measure == "loss" else 1


def mean_and_std(values: np.ndarray, *, digits: int = 2) -> str:
    """Write the mean and the standard deviation (n - 1) of some values."""
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.{digits}f} ± {deviation:.{digits}f}"


def interval(differences: np.ndarray, *, ring: bool = False) -> tuple[float, float]:
    """Return the mean and the half-width of the 95 % t-interval of paired differences.

    Args:
        differences: One difference for every target, shape [seeds].
        ring: Whether neighbours share a network, as the targets of a ladder do: each network is the source of the next
            target. The wider of two intervals is returned: one ignores this, the other knows the covariance of
            neighbours. It takes four targets or more to estimate that.
    """
    widest = max(_spreads(differences, differences, ring=ring))
    return float(differences.mean()), float(widest**0.5 * stats.t.ppf(0.975, len(differences) - 1))


def _spreads(x: np.ndarray, y: np.ndarray, *, ring: bool) -> list[float]:
    """Estimate the covariance of two means: of independent targets, and of targets in a ring."""
    x, y, count = x - x.mean(), y - y.mean(), len(x)
    own = x @ y
    found = [float(own / (count * (count - 1)))]
    if ring and count > 3:
        beside = x @ np.roll(y, 1) + x @ np.roll(y, -1)
        found.append(float((own + beside) / (count * (count - 3))))  # 3, not 1: each of them lost the mean of all
    return found


def gap_closed(
    row: np.ndarray, naive: np.ndarray, lth: np.ndarray, *, ring: bool = False
) -> tuple[float, float, float] | None:
    """Return the mean gain over naive as a share of the ticket's own gain, with its 95 % interval.

    Args:
        row: The measure of a row for every target, shape [seeds].
        naive: The same for the source's mask as it is.
        lth: The same for the target's own ticket.
        ring: Whether neighbours share a network, as for :func:`interval`.

    Returns:
        The share and the ends of its interval; None if the ticket's own gain cannot be told from 0.

    References:
        Fieller, 1954, "Some Problems in Interval Estimation".
    """
    gain, whole = row - naive, lth - naive
    t = stats.t.ppf(0.975, len(gain) - 1)
    x, y, ends = gain.mean(), whole.mean(), []
    pairs = (gain, gain), (gain, whole), (whole, whole)
    for spreads in zip(*(_spreads(*pair, ring=ring) for pair in pairs), strict=True):
        var_gain, both, var_whole = (t**2 * spread for spread in spreads)
        a, b, c = y**2 - var_whole, x * y - both, x**2 - var_gain
        if a <= 0:
            return None
        root = max(b**2 - a * c, 0.0) ** 0.5
        ends += [float((b - root) / a), float((b + root) / a)]
    return float(x / y), min(ends), max(ends)
