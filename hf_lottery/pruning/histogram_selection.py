"""Exact selection where the scores are: on an accelerator, or in shards on any number of processes, with the same mask.

The scores are not moved. Histograms of 65,536 bins over the bits of the numbers, two for float32 and four for float64,
are summed over all devices and processes and give the exact threshold. Then it is found where equal scores are cut.
Only the finished mask is gathered, tensor by tensor, at one byte per weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ..networks.shards import block, counts_here, from_local, is_sharded, local, part_of, sum_over_shards, whole
from ..storage.encoding import count_ones
from .chunks import chunk_size, common_dtype, pieces, refuse_nan

_BITS = 16  # bits of the number that one pass reads
_BINS = 1 << _BITS


def remove_lowest_where_it_is(
    scores: Mapping[str, Tensor], remove: int, *, alive: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Do what :func:`hf_lottery.pruning.selection.remove_lowest` does, for any devices and shards. Collective."""
    count = _Count(scores, alive)
    competing = int(sum(count.per_name(count.competing)))
    if not 0 <= remove <= competing:
        raise ValueError(f"remove must be from 0 to {competing}, the number of competing weights; received {remove}.")
    score, ties = _threshold(count, remove) if competing else (-math.inf, 0)
    last, cut = _last_tie(count, score, ties)
    order = {name: k for k, name in enumerate(sorted(scores))}
    keep = {}
    for name in scores:
        values = count.parts[name].to(count.dtype)
        kept = values >= score if order[name] > last else values > score
        if order[name] == last:
            tied = count.equal(name, score)
            kept[tied] = _positions(scores[name], tied) >= cut
        if count.live is not None:
            kept &= count.live[name]
        keep[name] = whole(from_local(kept, scores[name])).cpu()
    return keep


class _Count:
    """Counting over devices and processes: the scores that this process counts, so that each counts once, and sums."""

    def __init__(self, scores: Mapping[str, Tensor], alive: Mapping[str, Tensor] | None):
        self.scores = scores
        self.parts = {name: local(score) for name, score in scores.items()}
        self.alive = alive and {name: part_of(alive[name], score) for name, score in scores.items()}
        self.live = self.alive and {name: entry.to(self.parts[name].device) for name, entry in self.alive.items()}
        self.dtype = common_dtype(self.parts)
        sharded = [score for score in scores.values() if is_sharded(score)]
        meshes = {score.device_mesh for score in sharded}  # pyright: ignore[reportAttributeAccessIssue]
        if len(meshes) > 1:
            raise NotImplementedError(f"all scores must be sharded over the same mesh; received {len(meshes)} meshes.")
        self.like = sharded[0] if sharded else None
        first = all(mesh.get_local_rank(d) == 0 for mesh in meshes for d in range(mesh.ndim))
        self.mine = {name for name, score in scores.items() if (counts_here(score) if is_sharded(score) else first)}

    def all(self, numbers: np.ndarray) -> np.ndarray:
        """Sum over the processes."""
        return numbers if self.like is None else sum_over_shards(numbers, self.like)

    def per_name(self, count: Callable[[str], int | Tensor]) -> np.ndarray:
        """Return a count of every tensor, by sorted name, over all processes."""
        # All are under way on the device before the first one is waited for.
        found = [count(name) if name in self.mine else 0 for name in sorted(self.scores)]
        return self.all(np.array([int(number) for number in found], np.int64))

    def competing(self, name: str) -> int:
        """Count the scores of a tensor that compete."""
        return self.parts[name].numel() if self.alive is None else count_ones(self.alive[name])

    def chunks(self, name: str) -> Iterator[Tensor]:
        """Yield the competing scores of a tensor on their device, flat, chunk by chunk."""
        part, start = self.parts[name], 0
        live = None if self.live is None else self.live[name].reshape(-1)
        for piece in pieces(part, chunk_size(part)):
            chunk = piece.to(self.dtype)
            yield chunk if live is None else chunk[live[start : start + len(chunk)]]
            start += len(chunk)

    def histogram(self, digits: Callable[[Tensor], Tensor]) -> np.ndarray:
        """Count how often each number from 0 to 65,535 is among the digits of the competing scores."""
        bins: dict[torch.device, Tensor] = {}
        for name in sorted(self.mine):
            for chunk in self.chunks(name):
                found = torch.bincount(digits(chunk), minlength=_BINS)
                bins[chunk.device] = bins[chunk.device].add_(found) if chunk.device in bins else found
        here = sum((found.cpu().numpy() for found in bins.values()), np.zeros(_BINS, np.int64))
        return self.all(here)

    def equal(self, name: str, score: float) -> Tensor:
        """Return which scores of a tensor compete and equal one."""
        equal = self.parts[name].to(self.dtype) == score
        return equal if self.live is None else equal & self.live[name]


def _threshold(count: _Count, remove: int) -> tuple[float, int]:
    """Return the score of the last weight to remove, and how many weights equal to it to remove."""
    nans = count.per_name(lambda name: sum(chunk.isnan().count_nonzero() for chunk in count.chunks(name)))
    for name, bad in zip(sorted(count.scores), nans.tolist(), strict=True):
        refuse_nan(name, bad, count.scores[name].numel())
    width = 64 if count.dtype == torch.float64 else 32
    rank, prefix = max(remove - 1, 0), 0
    below = 0
    for shift in range(width - _BITS, -1, -_BITS):

        def digits(chunk: Tensor, shift: int = shift, prefix: int = prefix) -> Tensor:
            keys = _keys(chunk)
            if shift == width - _BITS:
                return (keys >> shift) + _BINS // 2
            return (keys[keys >> (shift + _BITS) == prefix] >> shift) & (_BINS - 1)

        bins = count.histogram(digits)
        upto = np.cumsum(bins)
        chosen = int(np.searchsorted(upto, rank - below, side="right"))
        below += int(upto[chosen] - bins[chosen])
        prefix = chosen - _BINS // 2 if shift == width - _BITS else prefix << _BITS | chosen
    return _number(prefix, width), remove - below


def _keys(numbers: Tensor) -> Tensor:
    """Return signed integers in the order of the numbers; -0 becomes 0."""
    bits = (numbers + 0.0).view(torch.int64 if numbers.dtype == torch.float64 else torch.int32)
    width = 8 * bits.itemsize
    return bits ^ ((bits >> (width - 1)) & ((1 << (width - 1)) - 1))


def _number(key: int, width: int) -> float:
    """Return the number from which :func:`_keys` made the key."""
    bits = key if key >= 0 else key ^ ((1 << (width - 1)) - 1)
    kinds = (np.int64, np.float64) if width == 64 else (np.int32, np.float32)
    return float(np.array([bits], kinds[0]).view(kinds[1])[0])


def _last_tie(count: _Count, score: float, ties: int) -> tuple[int, int]:
    """Find where the ``ties`` first of the scores equal to one end, by sorted name, then position.

    Returns:
        The index of the name that has the last of them, and the flat position before which they lie there.
    """
    names = sorted(count.parts)
    upto = np.cumsum(count.per_name(lambda name: count.equal(name, score).count_nonzero()))
    last = int(np.searchsorted(upto, ties, side="left"))
    before = int(upto[last - 1]) if last else 0
    if last == len(names) or ties == before:
        return last, 0
    name = names[last]
    found = _positions(count.scores[name], count.equal(name, score))
    low, high = 0, count.scores[name].numel()
    while low < high:
        middle = (low + high) // 2
        here = int(torch.searchsorted(found, middle)) if name in count.mine else 0
        if count.all(np.array([here]))[0] >= ties - before:
            high = middle
        else:
            low = middle + 1
    return last, low


def _positions(tensor: Tensor, chosen: Tensor) -> Tensor:
    """Return the ascending flat positions, in the whole tensor, of the elements chosen among those held here."""
    places = chosen.nonzero()
    begins = [begin for begin, _ in block(tensor)] if is_sharded(tensor) else [0] * tensor.ndim
    positions = places.new_zeros(len(places))
    for size, begin, along in zip(tensor.shape, begins, places.unbind(1), strict=True):
        positions = positions * size + along + begin
    return positions
