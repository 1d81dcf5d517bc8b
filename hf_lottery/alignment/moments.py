"""Moments: sums over paired observations of the units of two networks, from which correlations follow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..networks.processes import reducing_device, sum_over_processes

_BLOCK = 1 << 22  # elements of a product that are held in float32 before they are added up: 16 MB
_PIECE = 1 << 13  # observations whose squares are summed in float32


class Observed(NamedTuple):
    """Observations ``[rows, units]`` around their own means, in float32 or float64, and these means."""

    values: Tensor
    shift: Tensor


def observe(x: Tensor, dimension: int) -> Observed:
    """Copy a tensor of activations, whose units lie along ``dimension``, less the mean of each unit.

    The copy keeps the order in memory as far as possible: units come first for maps of channels, last for tokens. One
    matrix product then serves both, and no values are transposed.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    last = x.stride(dimension) == 1
    x = x.movedim(dimension, -1 if last else 0)
    others = tuple(range(x.ndim - 1)) if last else tuple(range(1, x.ndim))
    shift = x.mean(others, dtype=dtype) if x.numel() else torch.zeros(x.shape[-1 if last else 0], dtype=dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    torch.sub(x, shift if last else shift.reshape(-1, *[1] * len(others)), out=out)
    return Observed(out.flatten(0, -2) if last else out.flatten(1).T, shift)


class Moments:
    """Streaming first and second moments of paired observations.

    Values are multiplied in float32 (in float64 if they are) around the means of their own batch, so that little
    cancels. The batches are added up in float64, around the means of the first one. The result depends on the order of
    the batches, and on which process has which, only by the rounding of float64.
    """

    def __init__(self, size: int):
        self.count = 0.0
        self._size, self._precision = size, 0.0
        self._start: list[Tensor] = []  # for target and source: the means of the first batch,
        self._sums: list[Tensor] = []  # the sums of all values less these means,
        self._squares: list[Tensor] = []  # and of their squares
        self._products: Tensor | None = None  # target by source

    def add(self, target: Observed, source: Observed) -> None:
        """Add a batch of observations of both networks."""
        if target.values.shape != source.values.shape:
            return self.spoil()
        rows, n = len(target.values), self._size
        if not rows:
            return
        device = target.values.device
        source = Observed(*(part.to(device) for part in source))
        first = self._products is None
        if self._products is None:
            self._products = torch.empty(n, n, dtype=torch.float64, device=device)
            self._start = [network.shift.double() for network in (target, source)]
            self._sums, self._squares = ([torch.zeros_like(start) for start in self._start] for _ in range(2))
        # The rest of a sum around a float32 mean is smaller than the rounding of the values.
        steps = [network.shift.double() - start for network, start in zip((target, source), self._start, strict=True)]
        for network, step, sums, squares in zip((target, source), steps, self._sums, self._squares, strict=True):
            sums.add_(step, alpha=rows)
            squares.add_(_squares(network.values)).add_(step.square(), alpha=rows)
        blocks = -(-n * n // _BLOCK)
        for products, values, step in zip(
            *(x.tensor_split(blocks, dim) for x, dim in ((self._products, 0), (target.values, 1), (steps[0], 0))),
            strict=True,
        ):
            batch = values.T @ source.values
            if first:
                products.copy_(batch)
            else:
                products.add_(batch).addr_(step, steps[1], alpha=rows)
        self.count += rows
        self._precision = max(self._precision, torch.finfo(target.values.dtype).eps)

    def spoil(self) -> None:
        """Discard everything: the networks made different numbers of observations here, as for routed tokens."""
        self.count = float("nan")

    def correlation(self) -> np.ndarray | None:
        """Return the Pearson correlations ``[target, source]`` over all processes; None without paired observations.

        They are NaN for units whose values or squares were not finite. Call it once, after the last observation: the
        products are overwritten.
        """
        n, count = self._size, self.count
        device = reducing_device() if self._products is None else self._products.device
        everywhere = sum_over_processes(torch.tensor(count, dtype=torch.float64, device=device))
        if not everywhere > 0:
            return None
        if self._products is None:
            self._products = torch.zeros(n, n, dtype=torch.float64, device=device)
            self._start, self._sums, self._squares = ([self._products.new_zeros(n)] * 2 for _ in range(3))
        mine = torch.tensor(count * self._precision, dtype=torch.float64, device=device)
        precision = sum_over_processes(mine) / everywhere
        offsets, scales = [], []
        for start, sums, squares in zip(self._start, self._sums, self._squares, strict=True):
            mean = sum_over_processes(count * start + sums) / everywhere
            offset = mean - start
            around = sum_over_processes(squares - offset * (2 * sums - count * offset))
            offsets.append(offset)
            scales.append(_scale(around, mean, everywhere, precision))
        # The products around the means of all processes, in one pass over them.
        left = torch.stack([self._sums[0], offsets[0]], 1)
        right = torch.stack([offsets[1], self._sums[1] - count * offsets[1]])
        products = sum_over_processes(self._products.addmm_(left, right, alpha=-1))
        return products.mul_(scales[0][:, None]).mul_(scales[1]).cpu().numpy()


def _scale(squares: Tensor, means: Tensor, count: Tensor, precision: Tensor) -> Tensor:
    """Return one over the norm of every unit's deviations: 0 if it never varies, NaN if it is not finite."""
    # The mean of a unit that never varies is rounded, which moved it by up to five last digits where we measured it.
    alive = squares > (8 * precision).square() * (means * means * count + 1e-30)
    scale = torch.where(alive, squares, torch.inf).rsqrt()
    return torch.where(squares.isfinite(), scale, torch.nan)


def _squares(values: Tensor) -> Tensor:
    """Return the sums of squares of the columns, in float64."""
    if values.stride(0) != 1:
        return values.square().sum(0).double()
    # Columns lie in one piece. A norm needs no copy of the squares, but adds up one after the other.
    norms = [torch.linalg.vector_norm(part, dim=0).double() for part in values.split(_PIECE)]
    return torch.stack(norms).square().sum(0)
