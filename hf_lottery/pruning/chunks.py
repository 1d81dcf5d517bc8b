"""Scores as a stream of chunks: no tensor is ever copied whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 17  # elements: a chunk of float32 and its comparisons stay in the second-level cache


def stream(
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor] | None,
    size: int,
    stride: int = 1,
    *,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, int, np.ndarray, np.ndarray | None]]:
    """Yield every ``stride``-th score by sorted name: name, flat position, values, and which of them compete."""
    dtype = dtype or common_dtype(scores)
    first = 0
    for name in sorted(scores):
        live = None if alive is None else alive[name].reshape(-1).cpu().numpy()
        start = 0
        for piece in _pieces(scores[name].detach(), size):
            chunk = piece[first::stride].to("cpu", dtype).numpy()
            if chunk.size:
                yield name, start, chunk, None if live is None else live[start + first : start + len(piece) : stride]
            first = (first - len(piece)) % stride
            start += len(piece)


class Block(NamedTuple):
    """Some scores, and where the answer about them is written.

    Attributes:
        place: The place of the first one in the row of all scores, in the order of sorted names.
        values: The scores.
        live: Which of them compete; None if all do.
        keep: Bool array to write which of them stay.
    """

    place: int
    values: np.ndarray
    live: np.ndarray | None
    keep: np.ndarray


def blocks(
    scores: Mapping[str, Tensor], alive: Mapping[str, Tensor] | None, keep: Mapping[str, Tensor], size: int
) -> Iterator[Block]:
    """Yield all scores by sorted name, in blocks of at most ``size``; small tensors share one, large ones are cut.

    Args:
        scores: Name -> scores.
        alive: Name -> bool tensor; which of them compete. None if all do.
        keep: Name -> bool tensor on the CPU; what is written into a block's ``keep`` arrives there.
        size: Number of scores in a block.
    """
    dtype, place = common_dtype(scores), 0
    waiting: list[str] = []
    waiting_size = 0

    def together() -> Iterator[Block]:
        if waiting:
            yield from _shared_block(waiting, scores, alive, keep, place - waiting_size, dtype)
            waiting.clear()

    for name in sorted(scores):
        count = scores[name].numel()
        if count + waiting_size > size:
            yield from together()
            waiting_size = 0
        if 4 * count <= size:
            waiting.append(name)
            waiting_size += count
        else:
            yield from together()
            waiting_size = 0
            out = keep[name].view(-1).numpy()
            for _, start, values, live in stream({name: scores[name]}, alive, size, dtype=dtype):
                yield Block(place + start, values, live, out[start : start + values.size])
        place += count
    yield from together()


def _shared_block(
    names: Sequence[str],
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor] | None,
    keep: Mapping[str, Tensor],
    place: int,
    dtype: torch.dtype,
) -> Iterator[Block]:
    """Yield one block of several small tensors, and hand its answer to each of them."""
    values = np.concatenate([scores[name].detach().reshape(-1).to("cpu", dtype).numpy() for name in names])
    live = None if alive is None else np.concatenate([alive[name].reshape(-1).cpu().numpy() for name in names])
    if values.size:
        out = np.empty(values.size, np.bool_)
        yield Block(place, values, live, out)
        begin = 0
        for name in names:
            part = keep[name].view(-1).numpy()
            part[:] = out[begin : begin + part.size]
            begin += part.size


def common_dtype(scores: Mapping[str, Tensor]) -> torch.dtype:
    """Return one dtype in which all scores compare exactly; widening a half type loses nothing."""
    return torch.float64 if any(score.dtype == torch.float64 for score in scores.values()) else torch.float32


def _pieces(tensor: Tensor, size: int) -> Iterator[Tensor]:
    """Yield the elements of a tensor in row-major order, as flat pieces of at most ``size``; never copy it whole."""
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(size)
    elif (row := tensor[0].numel()) > size:
        for part in tensor:
            yield from _pieces(part, size)
    else:
        for part in tensor.split(size // row):
            yield part.reshape(-1)
