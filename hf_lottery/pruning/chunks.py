"""Scores as a stream of chunks: no tensor is ever copied whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
