"""Exact streaming selection of the lowest scores of many tensors, which are never concatenated or sorted.

A small sample brackets the wanted rank. One pass over the scores counts what lies at and around the ends of the bracket
and collects the one percent inside it, where the rank is then found exactly. A misleading sample costs more passes but
never changes the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..networks.shards import is_sharded, whole
from .chunks import CHUNK, stream
from .sharded_selection import remove_lowest_sharded

_SAMPLE = 1 << 17
_SIGMAS = 4.5  # half-width of the bracket in standard deviations of a sample rank


class Threshold(NamedTuple):
    """The cut: scores below ``score`` are removed, and the first ``ties`` equal ones by sorted name, then position."""

    score: float
    ties: int


class _Survey(NamedTuple):
    """Result of one pass: counts of scores <, <= the low and <, <= the high end, and the scores inside or a sample."""

    below_low: int
    upto_low: int
    below_high: int
    upto_high: int
    inside: np.ndarray


def remove_lowest(
    scores: Mapping[str, Tensor], remove: int, *, alive: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Remove the ``remove`` lowest scores; equal ones in the order of sorted names, then flat position.

    Args:
        scores: Name -> floating tensor of any shape, strides and device. The highest stay. DTensors are not gathered:
            every process calls this with its shards, and all get the same result.
        remove: How many weights to remove, from 0 to the number of competing weights.
        alive: Name -> bool tensor of the same shape. Only True entries compete; the others are removed in addition.

    Returns:
        Name -> bool tensor on the CPU, in the order of ``scores``. True keeps a weight.

    Raises:
        ValueError: ``remove`` is out of range, or a competing score is NaN.

    Example:
        >>> remove_lowest({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([1.0, 2.0])}, 1)
        {'a': tensor([ True, False]), 'b': tensor([True, True])}
    """
    if any(map(is_sharded, scores.values())):
        return remove_lowest_sharded(scores, remove, alive=alive)
    return keep_above(scores, find_threshold(scores, remove, alive=alive), alive=alive)


def find_threshold(
    scores: Mapping[str, Tensor], remove: int, *, alive: Mapping[str, Tensor] | None = None
) -> Threshold:
    """Find the threshold that removes exactly ``remove`` weights; arguments and errors as for :func:`remove_lowest`.

    It needs extra memory for a sample of about 131,000 scores and for at most 1/64 of all scores.

    Example:
        >>> find_threshold({"a": torch.tensor([3.0, 1.0, 1.0, 2.0])}, 1)
        Threshold(score=1.0, ties=1)
    """
    count = sum(score.numel() if alive is None else int(alive[name].sum()) for name, score in scores.items())
    if not 0 <= remove <= count:
        raise ValueError(f"remove must be from 0 to {count}, the number of competing weights; received {remove}.")
    if not count:
        return Threshold(-math.inf, 0)
    rank = max(remove - 1, 0)  # of the last score to remove
    floor, ceiling = -math.inf, math.inf
    low, high = _bracket(_sample(scores, alive), rank, count, floor, ceiling)
    while True:
        seen = _survey(scores, alive, low, high, capacity=max(count // 64, CHUNK))
        if rank < seen.below_low:
            low, high, ceiling = floor, low, low
        elif rank < seen.upto_low:
            return Threshold(float(low), remove - seen.below_low)
        elif rank < seen.below_high:
            rank_inside, count_inside = rank - seen.upto_low, seen.below_high - seen.upto_low
            if len(seen.inside) == count_inside:
                seen.inside.partition(rank_inside)
                score = seen.inside[rank_inside]
                return Threshold(float(score), remove - seen.upto_low - int((seen.inside < score).sum()))
            floor, ceiling = low, high
            low, high = _bracket(seen.inside, rank_inside, count_inside, floor, ceiling)
        elif rank < seen.upto_high:
            return Threshold(float(high), remove - seen.below_high)
        else:
            low, high, floor = high, ceiling, high


def keep_above(
    scores: Mapping[str, Tensor], threshold: Threshold, *, alive: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Apply a threshold found for these ``scores``; arguments and result as for :func:`remove_lowest`."""
    keep, flat = _empty_masks(scores)
    score, ties = threshold
    for name, start, chunk, live in stream(scores, alive, CHUNK):
        out = flat[name][start : start + chunk.size]
        np.greater_equal(chunk, score, out=out)
        if live is not None:
            np.logical_and(out, live, out=out)
        if ties:
            tied = np.logical_and(chunk == score, out)
            count = int(np.count_nonzero(tied))
            end = chunk.size if count <= ties else int(np.flatnonzero(tied)[ties])
            np.greater(out[:end], tied[:end], out=out[:end])
            ties -= min(count, ties)
    return keep


def keep_highest_of_groups(
    scores: Mapping[str, Tensor], n: int, m: int, *, alive: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Keep the ``n`` highest of every ``m`` consecutive weights along the last axis; the last of equal ones stay.

    Arguments and result are as for :func:`remove_lowest`; ``m`` divides the last axis of every tensor.

    Raises:
        ValueError: ``alive`` leaves fewer than ``n`` weights in a group, or a competing score is NaN.

    Example:
        >>> keep_highest_of_groups({"a": torch.tensor([3.0, 1.0, 2.0, 2.0])}, 1, 2)
        {'a': tensor([ True, False, False,  True])}
    """
    if any(map(is_sharded, scores.values())):  # a group may lie on two processes, so gather tensor by tensor
        return {k: keep_highest_of_groups({k: whole(s)}, n, m, alive=alive)[k] for k, s in scores.items()}
    keep, flat = _empty_masks(scores)
    for name, start, chunk, live in stream(scores, alive, max(CHUNK // m, 1) * m):
        _refuse_nan(name, chunk, live)
        groups = chunk.reshape(-1, m)
        if live is None:
            order = np.argsort(groups, axis=1, kind="stable")
        else:
            live = live.reshape(-1, m)
            if (fewest := int(live.sum(axis=1).min())) < n:
                raise ValueError(
                    f"every {m} consecutive weights of {name!r} must have {n} left to keep; received a group with "
                    f"{fewest}. Start from a mask with the same groups, or from none."
                )
            order = np.lexsort((groups, live), axis=1)
        out = flat[name][start : start + chunk.size].reshape(-1, m)
        np.put_along_axis(out, order, np.arange(m) >= m - n, axis=1)
    return keep


def _empty_masks(scores: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """Make uninitialized bool tensors in the shapes of the scores, and flat arrays that share their memory."""
    keep = {name: torch.empty(score.shape, dtype=torch.bool) for name, score in scores.items()}
    return keep, {name: entry.view(-1).numpy() for name, entry in keep.items()}


def _refuse_nan(name: str, chunk: np.ndarray, live: np.ndarray | None) -> None:
    """Raise the ValueError for a NaN among the competing scores of a non-empty chunk."""
    # The minimum is NaN exactly if an element is, and costs one comparison each. A dot product would work too, but
    # numpy warns when its squares overflow.
    if np.isnan(chunk.min()) and (bad := int((np.isnan(chunk) & (True if live is None else live)).sum())):
        raise ValueError(
            f"the scores of {name!r} must be numbers; received NaN, {bad} times among {chunk.size} values. "
            "Check for diverged training or a division 0 / 0."
        )


def _sample(scores: Mapping[str, Tensor], alive: Mapping[str, Tensor] | None) -> np.ndarray:
    # Most row lengths are multiples of a power of two, so an odd stride does not always hit the same columns.
    stride = sum(score.numel() for score in scores.values()) // _SAMPLE | 1
    chunks = [chunk if live is None else chunk[live] for _, _, chunk, live in stream(scores, alive, CHUNK, stride)]
    return np.concatenate(chunks) if chunks else np.empty(0)


def _bracket(sample: np.ndarray, rank: int, count: int, floor: float, ceiling: float) -> tuple[float, float]:
    """Return two values that probably enclose ``rank`` of ``count``; permutes the sample."""
    share, size = rank / count, len(sample)
    margin = _SIGMAS * math.sqrt(size * share * (1 - share)) + _SIGMAS
    first, last = math.floor(share * size - margin), math.ceil(share * size + margin)
    inner = [index for index in (first, last) if 0 <= index < size]
    if inner:
        sample.partition(inner)
    return sample[first] if first in inner else floor, sample[last] if last in inner else ceiling


def _survey(
    scores: Mapping[str, Tensor], alive: Mapping[str, Tensor] | None, low: float, high: float, *, capacity: int
) -> _Survey:
    counts, flags = [0, 0, 0, 0], np.empty((3, CHUNK), np.bool_)
    inside, used, step = np.empty(0), 0, 1
    for name, _, chunk, live in stream(scores, alive, CHUNK):
        if not inside.size:
            inside = np.empty(min(capacity, sum(score.numel() for score in scores.values())), chunk.dtype)
        _refuse_nan(name, chunk, live)
        upto_low, below_high, other = flags[:, : chunk.size]
        inside_before = counts[2] - counts[1]
        rows = ((low, other), (low, upto_low), (high, below_high), (high, other))
        for index, (end, out) in enumerate(rows):
            (np.less_equal if index % 2 else np.less)(chunk, end, out=out)
            if live is not None:
                np.logical_and(out, live, out=out)
            counts[index] += int(np.count_nonzero(out))
        found = chunk[np.greater(below_high, upto_low, out=other)]
        # If the bracket holds too many values, drop every second one until they fit: a sample for the next bracket.
        while used + len(kept := found[-inside_before % step :: step]) > capacity:
            used = (used + 1) // 2
            inside[:used] = inside[: 2 * used : 2].copy()
            step *= 2
        inside[used : used + len(kept)] = kept
        used += len(kept)
    return _Survey(*counts, inside=inside[:used])
