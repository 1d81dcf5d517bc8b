"""Exact streaming selection of the lowest scores of many tensors, which are never concatenated or sorted.

A small sample brackets the wanted rank. One pass over the scores writes the mask of all that lies above the bracket,
and collects the one percent inside it, where the rank is then found exactly. A misleading sample costs more passes but
never changes the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..networks.shards import is_sharded, whole
from .chunks import CHUNK, Block, Row, chunk_size, common_dtype, pieces, refuse_nan
from .histogram_selection import remove_lowest_where_it_is

_SAMPLE = 1 << 17
_SIGMAS = 4.5  # half-width of the bracket in standard deviations of a sample rank
_COMPARED = 8  # in groups up to this size all pairs are compared; larger ones are sorted


class _Pass(NamedTuple):
    """Result of one pass: how many scores are <= the low end and < the high end, and those between with their places.

    ``between`` holds all scores between the ends or, if these are too many, evenly spaced ones.
    """

    upto_low: int
    below_high: int
    between: np.ndarray
    places: np.ndarray


def remove_lowest(
    scores: Mapping[str, Tensor], remove: int, *, alive: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Remove the ``remove`` lowest scores; equal ones in the order of sorted names, then flat position.

    It needs extra memory for a sample of about 131,000 scores, and for at most 1/64 of all scores with their places.

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
    if any(is_sharded(score) or not score.is_cpu for score in scores.values()):
        return remove_lowest_where_it_is(scores, remove, alive=alive)
    row = Row(scores, alive)
    count = row.count()
    if not 0 <= remove <= count:
        raise ValueError(f"remove must be from 0 to {count}, the number of competing weights; received {remove}.")
    if count:
        _Cut(row).remove_lowest(remove, count)
    return row.mask()


class _Cut:
    """The search for the cut between what goes and what stays, which writes the mask as it looks."""

    def __init__(self, row: Row):
        self.row = row

    def remove_lowest(self, remove: int, count: int) -> None:
        found = self.find(remove, count)
        if isinstance(found, tuple):
            self.keep_above(*found)
        else:
            self.keep_places(found)

    def find(self, remove: int, count: int) -> np.ndarray | tuple[float, int]:
        """Find which scores in the bracket stay; or the score of the cut, and how many that equal it go."""
        rank = max(remove - 1, 0)  # of the last score to remove
        floor, ceiling = -math.inf, math.inf
        low, high = floor, ceiling
        if count > _SAMPLE:
            # Most row lengths are multiples of a power of two, so an odd stride does not always hit the same columns.
            low, high = _bracket(self.row.sample(count // _SAMPLE | 1), rank, count, floor, ceiling)
        while True:
            seen = self.look(low, high, capacity=max(count // 64, CHUNK))
            inside = seen.below_high - seen.upto_low
            if rank < seen.upto_low:
                below_low = seen.upto_low - self.count_equal(low)
                if rank >= below_low:
                    return low, remove - below_low
                low, high, ceiling = floor, low, low
            elif rank >= seen.below_high:
                if rank < seen.below_high + self.count_equal(high):
                    return high, remove - seen.below_high
                low, high, floor = high, ceiling, high
            elif len(seen.between) == inside:
                return seen.places[_staying(seen.between, remove - seen.upto_low)]
            else:
                floor, ceiling = low, high
                low, high = _bracket(seen.between, rank - seen.upto_low, inside, floor, ceiling)

    def blocks(self) -> Iterator[Block]:
        return self.row.blocks(CHUNK)

    def look(self, low: float, high: float, *, capacity: int) -> _Pass:
        """Keep what is at least ``high``, count, and collect what is between the ends."""
        flags, used, step = np.empty((2, CHUNK), np.bool_), 0, 1
        upto_low = below_high = 0
        between, places = np.empty(0), np.empty(0)
        for place, values, live, keep in self.blocks():
            if not len(places):
                between = np.empty(capacity, values.dtype)
                places = np.empty(capacity, np.uint32 if self.row.total < 2**32 else np.int64)
            above, below = flags[:, : values.size]
            np.greater(values, low, out=above)
            np.less(values, high, out=below)
            np.logical_not(below, out=keep)
            if live is not None:
                for flag in (above, below, keep):
                    np.logical_and(flag, live, out=flag)
            count = values.size if live is None else int(np.count_nonzero(live))
            many_above, many_below = int(np.count_nonzero(above)), int(np.count_nonzero(below))
            found = np.flatnonzero(np.logical_and(above, below, out=above))
            if many_above + many_below - len(found) != count:  # scores that equal both ends, or NaN
                self.refuse_nan(values, live)
            before = below_high - upto_low
            upto_low, below_high = upto_low + count - many_above, below_high + many_below
            # If the bracket holds too many values, drop every second one until they fit: a sample for the next bracket.
            while used + len(some := found[-before % step :: step]) > capacity:
                used = (used + 1) // 2
                for array in (between, places):
                    array[:used] = array[: 2 * used : 2].copy()
                step *= 2
            between[used : used + len(some)], places[used : used + len(some)] = values[some], some + place
            used += len(some)
        return _Pass(upto_low, below_high, between[:used], places[:used])

    def count_equal(self, score: float) -> int:
        """Count the competing scores that equal one."""
        equal = ((values == score, live) for _, values, live, _ in self.blocks())
        return sum(int(np.count_nonzero(same if live is None else same & live)) for same, live in equal)

    def keep_above(self, score: float, ties: int) -> None:
        """Keep what is at least ``score``, except for the first ``ties`` equal ones."""
        for _, values, live, keep in self.blocks():
            np.greater_equal(values, score, out=keep)
            if live is not None:
                np.logical_and(keep, live, out=keep)
            if ties:
                tied = np.logical_and(values == score, keep)
                count = int(np.count_nonzero(tied))
                end = values.size if count <= ties else int(np.flatnonzero(tied)[ties])
                np.greater(keep[:end], tied[:end], out=keep[:end])
                ties -= min(count, ties)

    def keep_places(self, places: np.ndarray) -> None:
        """Keep the scores at these ascending places in the row."""
        cuts = np.searchsorted(places, [part.place for part in self.row.parts] + [self.row.total])
        for part, first, last in zip(self.row.parts, cuts[:-1], cuts[1:], strict=True):
            if last > first:
                part.keep[places[first:last] - part.place] = True

    def refuse_nan(self, values: np.ndarray, live: np.ndarray | None) -> None:
        """Raise ValueError, with the name of the first tensor that has one, if a block has a NaN that competes."""
        if np.isnan(values if live is None else values[live]).any():
            for part in self.row.parts:
                bad = 0
                for _, numbers, living, _ in part.cut(CHUNK, self.row.dtype):
                    bad += int(np.count_nonzero(np.isnan(numbers if living is None else numbers[living])))
                refuse_nan(part.name, bad, part.keep.size)


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
    dtype = common_dtype(scores)
    return {
        name: _keep_in_tensor(name, score.detach(), None if alive is None else alive[name], n, m, dtype).cpu()
        for name, score in scores.items()
    }


def _keep_in_tensor(name: str, score: Tensor, alive: Tensor | None, n: int, m: int, dtype: torch.dtype) -> Tensor:
    """Do it for one tensor, on its device."""
    keep = score.new_empty(score.shape, dtype=torch.bool)
    live = None if alive is None else alive.to(score.device).reshape(-1)
    start = 0
    for piece in pieces(score, max(chunk_size(score) // m, 1) * m):
        span = slice(start, start := start + len(piece))
        groups, out = piece.to(dtype).view(-1, m), keep.view(-1)[span].view(-1, m)
        living = None if live is None else live[span].view(-1, m)
        # The minimum is NaN exactly if an element is, and costs one comparison each.
        if len(piece) and math.isnan(groups.min()):
            bad = groups.isnan() if living is None else groups.isnan() & living
            refuse_nan(name, int(bad.count_nonzero()), len(piece))
        if len(piece) and living is not None and (fewest := int(living.sum(1).min())) < n:
            raise ValueError(
                f"every {m} consecutive weights of {name!r} must have {n} left to keep; received a group with "
                f"{fewest}. Start from a mask with the same groups, or from none."
            )
        if m <= _COMPARED:
            _keep_by_comparing(groups, living, n, out)
        else:
            _keep_by_sorting(groups, living, n, out)
    return keep


def _keep_by_comparing(groups: Tensor, live: Tensor | None, n: int, keep: Tensor) -> None:
    """Keep a weight if it beats enough of its group: it is higher, or as high and later, or alone in being alive."""
    m = groups.shape[1]
    tables: Any = [groups.T, keep.T, groups.new_zeros((m, len(groups)), dtype=torch.uint8)]
    if live is not None:
        tables.append(live.T)
    if groups.is_cpu:  # the same operators of numpy compare columns twice as fast
        tables = [table.numpy() for table in tables]
    scores, stay, wins, *rest = map(list, tables)
    alive = rest[0] if rest else None
    for i in range(m):
        for j in range(i + 1, m):
            first = scores[i] > scores[j]
            if alive is not None:
                first = (first | ~alive[j]) & alive[i]
            wins[i] += first
            wins[j] += ~first
    for i in range(m):
        stay[i][:] = wins[i] >= m - n


def _keep_by_sorting(groups: Tensor, live: Tensor | None, n: int, keep: Tensor) -> None:
    """Keep the last ``n`` of every row in the order of scores, with all that does not compete before them."""
    m = groups.shape[1]
    order = groups.argsort(dim=1, stable=True)
    if live is not None:
        order = order.gather(1, live.gather(1, order).byte().argsort(dim=1, stable=True))
    keep.scatter_(1, order, (torch.arange(m, device=order.device) >= m - n).expand(order.shape))


def _bracket(sample: np.ndarray, rank: int, count: int, floor: float, ceiling: float) -> tuple[float, float]:
    """Return two values that probably enclose ``rank`` of ``count``; permutes the sample."""
    share, size = rank / count, len(sample)
    margin = _SIGMAS * math.sqrt(size * share * (1 - share)) + _SIGMAS
    first, last = math.floor(share * size - margin), math.ceil(share * size + margin)
    inner = [index for index in (first, last) if 0 <= index < size]
    if inner:
        sample.partition(inner)
    return sample[first] if first in inner else floor, sample[last] if last in inner else ceiling


def _staying(values: np.ndarray, gone: int) -> np.ndarray:
    """Return which scores stay when the ``gone`` lowest go, of equal ones the first."""
    if not gone:
        return np.ones(len(values), np.bool_)
    score = np.partition(values, gone - 1)[gone - 1]
    staying = values > score
    ties = gone - int(np.count_nonzero(values < score))
    staying[np.flatnonzero(values == score)[ties:]] = True
    return staying
