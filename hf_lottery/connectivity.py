"""Connectivity: what happens on the straight line between two networks.

References:
    Frankle, Dziugaite, Roy and Carbin, 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis",
    arXiv:1912.05671.
    Entezari, Sedghi, Saukh and Neyshabur, 2022, "The Role of Permutation Invariance in Linear Mode Connectivity of
    Neural Networks", arXiv:2110.06296.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .mask import MaskMismatchError
from .rewind import named_state


@dataclass(frozen=True)
class Barrier:
    """Errors along the straight line between two networks; what :func:`error_barrier` returns.

    Attributes:
        alphas: Where on the line, 0 the first network and 1 the second.
        errors: The error of the interpolated network there.
    """

    alphas: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def barrier(self) -> float:
        """The largest error on the line minus the mean error of the ends (Frankle et al., 2020); 0 or more."""
        return max(self.errors) - (self.errors[0] + self.errors[-1]) / 2

    @property
    def linear_barrier(self) -> float:
        """The largest excess over the straight line between the errors of the ends (Entezari et al., 2022)."""
        first, last = self.errors[0], self.errors[-1]
        return max(e - ((1 - a) * first + a * last) for a, e in zip(self.alphas, self.errors, strict=True))


def error_barrier(a: nn.Module, b: nn.Module, evaluate: Callable[[nn.Module], float], *, points: int = 11) -> Barrier:
    """The error of the networks on the straight line from ``a`` to ``b``.

    Every parameter and every floating-point buffer is interpolated, in ``a`` itself, which is as before at the end.

    Args:
        a: The first network.
        b: The second, of the same names and shapes; not changed.
        evaluate: The error of a network, such as ``1 - accuracy`` or a loss: lower is better. With batch norms let it
            call :func:`recalibrate_batch_norm_` first, at the ends too: interpolated statistics are of no network.
        points: How many networks, evenly from ``a`` to ``b``, the ends included.

    Raises:
        ValueError: Fewer than 2 points.
        MaskMismatchError: The networks differ in names or shapes.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, the two ends; received {points}.")
    alphas = [i / (points - 1) for i in range(points)]
    errors = []
    with _line(a, b) as move:
        for alpha in alphas:
            move(alpha)
            errors.append(float(evaluate(a)))
    return Barrier(tuple(alphas), tuple(errors))


@contextmanager
def _line(a: nn.Module, b: nn.Module) -> Iterator[Callable[[float], None]]:
    """A function that moves ``a`` to a point of the line, in place, without allocating; at the end ``a`` is back."""
    state, other = named_state(a), named_state(b)
    if only := state.keys() ^ other.keys():
        raise MaskMismatchError(f"two networks must have the same parameters; {min(only)!r} is in one only.")
    for name, tensor in state.items():
        if tensor.shape != other[name].shape:
            raise MaskMismatchError(
                f"{name!r} must have one shape in both networks; received {list(tensor.shape)} and "
                f"{list(other[name].shape)}."
            )
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    ends = {name: other[name].detach().to(tensor) for name, tensor in state.items()}

    def move(alpha: float) -> None:
        for name, tensor in state.items():
            if tensor.is_floating_point():
                torch.lerp(before[name], ends[name], alpha, out=tensor.detach())

    try:
        yield move
    finally:
        for name, tensor in state.items():
            tensor.detach().copy_(before[name])
