"""Scores as one row of numbers, read in blocks: large tensors are cut, small ones share one, none is copied whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 17  # elements: a chunk of float32 and its comparisons stay in the second-level cache


class Block(NamedTuple):
    """Some scores, and where the answer about them is written.

    Attributes:
        place: The place of the first one in the row of all scores.
        values: The scores.
        live: Which of them compete; None if all do.
        keep: Bool array to write which of them stay.
    """

    place: int
    values: np.ndarray
    live: np.ndarray | None
    keep: np.ndarray


class Part(NamedTuple):
    """One tensor of a row.

    Attributes:
        name: Its name.
        place: The place of its first score in the row.
        score: Its scores.
        values: The same, flat and shared with the tensor; None if its dtype or layout needs a copy.
        live: Which of them compete, flat; None if all do.
        keep: Bool array, flat, to write which of them stay.
    """

    name: str
    place: int
    score: Tensor
    values: np.ndarray | None
    live: np.ndarray | None
    keep: np.ndarray

    def numbers(self, dtype: torch.dtype) -> np.ndarray:
        """Return all scores, flat; for small parts."""
        return self.score.reshape(-1).to(dtype).numpy() if self.values is None else self.values

    def strided(self, first: int, stride: int, dtype: torch.dtype) -> Iterator[np.ndarray]:
        """Yield every ``stride``-th competing score from the place ``first``."""
        if self.values is not None:
            chosen = slice(first, None, stride)
            yield self.values[chosen] if self.live is None else self.values[chosen][self.live[chosen]]
            return
        start = 0
        for piece in pieces(self.score, CHUNK):
            chosen = slice((first - start) % stride, None, stride)
            values = piece[chosen].to(dtype).numpy()
            yield values if self.live is None else values[self.live[start : start + len(piece)][chosen]]
            start += len(piece)

    def cut(self, size: int, dtype: torch.dtype) -> Iterator[Block]:
        """Yield blocks of at most ``size`` scores."""
        if self.values is None:
            arrays = (piece.to(dtype).numpy() for piece in pieces(self.score, size))
        else:
            arrays = (self.values[start : start + size] for start in range(0, self.values.size, size))
        start = 0
        for values in arrays:
            span = slice(start, start + values.size)
            yield Block(self.place + start, values, None if self.live is None else self.live[span], self.keep[span])
            start += values.size


class Row:
    """All scores on the CPU as one row, tensor after tensor by sorted name, and the mask that is written beside it.

    Args:
        scores: Name -> scores.
        alive: Name -> bool tensor; which of them compete. None if all do.
    """

    def __init__(self, scores: Mapping[str, Tensor], alive: Mapping[str, Tensor] | None):
        self.dtype = common_dtype(scores)
        self.shapes = {name: score.shape for name, score in scores.items()}
        self.parts: list[Part] = []
        self.total = 0
        for name in sorted(scores):
            score = scores[name].detach()
            shared = score.dtype == self.dtype and score.is_contiguous()
            values = score.numpy().reshape(-1) if shared else None
            live = None if alive is None else alive[name].numpy(force=True).reshape(-1)
            size = score.numel()
            self.parts.append(Part(name, self.total, score, values, live, np.zeros(size, np.bool_)))
            self.total += size

    def count(self) -> int:
        """Count the scores that compete."""
        return sum(p.keep.size if p.live is None else int(np.count_nonzero(p.live)) for p in self.parts)

    def mask(self) -> dict[str, Tensor]:
        """Return what was written, in the order of the scores."""
        keep = {part.name: part.keep for part in self.parts}
        return {name: torch.from_numpy(keep[name].reshape(shape)) for name, shape in self.shapes.items()}

    def sample(self, stride: int) -> np.ndarray:
        """Return every ``stride``-th score if it competes."""
        found = []
        for part in self.parts:
            found += part.strided(-part.place % stride, stride, self.dtype)
        return np.concatenate(found) if found else np.empty(0)

    def blocks(self, size: int) -> Iterator[Block]:
        """Yield all scores in blocks of at most ``size``; small tensors share one, large ones are cut."""
        waiting: list[Part] = []
        waiting_size = 0
        for part in self.parts:
            if part.keep.size + waiting_size > size:
                yield from self._shared(waiting)
                waiting, waiting_size = [], 0
            if 4 * part.keep.size <= size:
                waiting.append(part)
                waiting_size += part.keep.size
            else:
                yield from self._shared(waiting)
                waiting, waiting_size = [], 0
                yield from part.cut(size, self.dtype)
        yield from self._shared(waiting)

    def _shared(self, parts: Sequence[Part]) -> Iterator[Block]:
        """Yield one block of several small tensors, and hand its answer to each of them."""
        if not any(part.keep.size for part in parts):
            return
        values = np.concatenate([part.numbers(self.dtype) for part in parts])
        live = [part.live for part in parts if part.live is not None]
        out = np.empty(values.size, np.bool_)
        yield Block(parts[0].place, values, np.concatenate(live) if live else None, out)
        begin = parts[0].place
        for part in parts:
            part.keep[:] = out[part.place - begin : part.place - begin + part.keep.size]


def common_dtype(scores: Mapping[str, Tensor]) -> torch.dtype:
    """Return one dtype in which all scores compare exactly; widening a half type loses nothing."""
    return torch.float64 if any(score.dtype == torch.float64 for score in scores.values()) else torch.float32


def chunk_size(tensor: Tensor) -> int:
    """Return how many elements of a tensor to read at once: few on a CPU, whose cache is small."""
    return CHUNK if tensor.is_cpu else 64 * CHUNK


def pieces(tensor: Tensor, size: int) -> Iterator[Tensor]:
    """Yield the elements of a tensor in row-major order, as flat pieces of at most ``size``; never copy it whole."""
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(size)
    elif (row := tensor.numel() // len(tensor)) > size:
        for part in tensor:
            yield from pieces(part, size)
    else:
        for part in tensor.split(size // row):
            yield part.reshape(-1)


def refuse_nan(name: str, count: int, size: int) -> None:
    """Raise ValueError if there are competing scores that are NaN.

    Args:
        name: The name of the scores.
        count: How many of them compete and are NaN.
        size: How many scores were looked at.
    """
    if count:
        raise ValueError(
            f"the scores of {name!r} must be numbers; received NaN, {count} times among {size} values. "
            "Check for diverged training or a division 0 / 0."
        )
