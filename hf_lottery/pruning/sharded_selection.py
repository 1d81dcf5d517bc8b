"""Exact selection of the lowest scores of sharded tensors, with the same mask on any number of processes.

The scores are not moved. Histograms of 65,536 bins over the bits of the numbers, two for float32 and four for float64,
are summed over all processes and give the exact threshold. A bisection finds where equal scores are cut. Only the
finished mask is gathered, tensor by tensor, at one byte per weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ..networks.shards import block, counts_here, from_local, is_sharded, local, part_of, sum_over_shards, whole
from .chunks import CHUNK, common_dtype, stream

_BITS = 16  # bits of the number that one pass reads
_BINS = 1 << _BITS


def remove_lowest_sharded(
    scores: Mapping[str, Tensor], remove: int, *, alive: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Do what :func:`hf_lottery.pruning.selection.remove_lowest` does if some scores are DTensors. Collective."""
    parts = {name: local(score) for name, score in scores.items()}
    live = alive and {name: part_of(alive[name], score) for name, score in scores.items()}
    count = _Count(scores, parts, live)
    competing = int(count.all(np.array([sum(chunk.size for _, chunk in count.counted())]))[0])
    if not 0 <= remove <= competing:
        raise ValueError(f"remove must be from 0 to {competing}, the number of competing weights; received {remove}.")
    score, ties = _threshold(count, remove) if competing else (-math.inf, 0)
    stay = _ties_that_stay(count, score, ties)
    keep = {}
    for name, part in parts.items():
        values = part.to(count.dtype)
        kept = (values > score) | ((values == score) & stay(name))
        if live is not None:
            kept &= live[name].to(kept.device)
        keep[name] = whole(from_local(kept, scores[name])).cpu()
    return keep


class _Count:
    """Counting over processes: the scores that this process counts, so that each counts once, and their sums."""

    def __init__(self, scores: Mapping[str, Tensor], parts: Mapping[str, Tensor], live: Mapping[str, Tensor] | None):
        self.scores, self.parts, self.live = scores, parts, live
        self.like = next(score for score in scores.values() if is_sharded(score))
        self.dtype = common_dtype(parts)
        meshes = {score.device_mesh for score in scores.values() if is_sharded(score)}  # pyright: ignore[reportAttributeAccessIssue]
        if len(meshes) > 1:
            raise NotImplementedError(f"all scores must be sharded over the same mesh; received {len(meshes)} meshes.")
        first = all(self.like.device_mesh.get_local_rank(d) == 0 for d in range(self.like.device_mesh.ndim))  # pyright: ignore[reportAttributeAccessIssue]
        self.mine = {name for name, score in scores.items() if (counts_here(score) if is_sharded(score) else first)}

    def all(self, numbers: np.ndarray) -> np.ndarray:
        return sum_over_shards(numbers, self.like)

    def counted(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name and values of the competing scores counted here, chunk by chunk, by sorted name."""
        parts = {name: part for name, part in self.parts.items() if name in self.mine}
        for name, _, chunk, live in stream(parts, self.live, CHUNK, dtype=self.dtype):
            yield name, chunk if live is None else chunk[live]


def _threshold(count: _Count, remove: int) -> tuple[float, int]:
    """Return the score of the last weight to remove, and how many weights equal to it to remove."""
    width = 64 if count.dtype == torch.float64 else 32
    rank, prefix = max(remove - 1, 0), 0
    below = 0
    for shift in range(width - _BITS, -1, -_BITS):
        bins = np.zeros(_BINS + 1, np.int64)  # the last bin counts NaN
        for _, chunk in count.counted():
            keys = _keys(chunk)
            if shift < width - _BITS:
                keys = keys[keys >> (shift + _BITS) == prefix]
            else:
                bins[-1] += np.count_nonzero(np.isnan(chunk))
            bins[:-1] += np.bincount((keys >> shift).astype(np.int64) & (_BINS - 1), minlength=_BINS)
        bins = count.all(bins)
        if bins[-1]:
            raise ValueError(
                f"scores must be numbers; received NaN, {bins[-1]} times. "
                "Check for diverged training or a division 0 / 0."
            )
        upto = np.cumsum(bins[:-1])
        chosen = int(np.searchsorted(upto, rank - below, side="right"))
        below += int(upto[chosen] - bins[chosen])
        prefix = prefix << _BITS | chosen
    return _number(prefix, width), remove - below


def _keys(numbers: np.ndarray) -> np.ndarray:
    """Return unsigned integers in the order of the numbers; -0 becomes 0."""
    unsigned = np.uint64 if numbers.itemsize == 8 else np.uint32
    bits = (numbers + 0.0).view(unsigned)
    top = unsigned(1 << (8 * numbers.itemsize - 1))
    return np.where(bits & top, ~bits, bits | top)


def _number(key: int, width: int) -> float:
    """Return the number from which :func:`_keys` made the key."""
    top = 1 << (width - 1)
    bits = key ^ top if key & top else key ^ ((1 << width) - 1)
    kinds = (np.uint64, np.float64) if width == 64 else (np.uint32, np.float32)
    return float(np.array([bits], kinds[0]).view(kinds[1])[0])


def _ties_that_stay(count: _Count, score: float, ties: int):
    """Tell which scores equal to the threshold stay: all except the first ``ties``, by sorted name, then position."""
    names = sorted(count.parts)
    here = dict.fromkeys(names, 0)
    for name, chunk in count.counted():
        here[name] += int(np.count_nonzero(chunk == score))
    upto = np.cumsum(count.all(np.array([here[name] for name in names])))
    split = int(np.searchsorted(upto, ties, side="left"))
    before = int(upto[split - 1]) if split else 0
    cut = _cut(count, names[split], score, ties - before) if split < len(names) and ties > before else 0

    def stay(name: str) -> Tensor:
        index = names.index(name)
        if index != split:
            return torch.tensor(index > split)
        part = count.parts[name]
        return _positions(count.scores[name], part.shape).to(part.device) >= cut

    return stay


def _cut(count: _Count, name: str, score: float, ties: int) -> int:
    """Return the flat position in ``name`` before which exactly ``ties`` competing scores equal the threshold."""
    found = np.empty(0, np.int64)
    if name in count.mine:
        part = count.parts[name]
        tied = part.to(count.dtype) == score
        if count.live is not None:
            tied &= count.live[name].to(tied.device)
        found = _positions(count.scores[name], part.shape)[tied.cpu()].numpy()
    low, high = 0, count.scores[name].numel()
    while low < high:
        middle = (low + high) // 2
        if count.all(np.array([np.searchsorted(found, middle)]))[0] >= ties:
            high = middle
        else:
            low = middle + 1
    return low


def _positions(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return, on the CPU, the flat position in the whole tensor of every element held here."""
    if not is_sharded(tensor):
        return torch.arange(tensor.numel()).view(shape)
    positions = torch.zeros((), dtype=torch.int64)
    for axis, (begin, size) in enumerate(block(tensor)):
        positions = positions[..., None] * tensor.shape[axis] + torch.arange(begin, begin + size)
    return positions
