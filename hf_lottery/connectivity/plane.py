"""Plane: the loss on the plane through three networks.

References:
    Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, 2018, "Loss Surfaces, Mode Connectivity, and Fast Ensembling of
    DNNs", arXiv:1802.10026.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.names import named_state, plain_name, unwrap
from .barrier import Evaluate
from .interpolation import check_alike, holding

Place = tuple[float, float]


@dataclass(frozen=True)
class Plane:
    """Errors on a grid in the plane through three networks, as :func:`loss_plane` returns them.

    Distances are Euclidean, over all parameters. ``hf_lottery.report.plot_plane`` draws the plane.

    Attributes:
        places: Coordinates of the three networks: the first at (0, 0), the second at (x, 0), the third at y > 0.
        xs: Horizontal coordinates of the grid, ascending.
        ys: Vertical coordinates of the grid, ascending.
        errors: One row for each of ``ys``, with one error for each of ``xs``.
    """

    places: tuple[Place, Place, Place]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    errors: tuple[tuple[float, ...], ...]

    def __repr__(self) -> str:
        low, high = np.nanmin(self.errors), np.nanmax(self.errors)
        places = ", ".join(f"({x:.4g}, {y:.4g})" for x, y in self.places)
        return f"Plane({len(self.xs)} x {len(self.ys)} points, errors {low:.4g} to {high:.4g}, networks at {places})"


def loss_plane(
    a: nn.Module, b: nn.Module, c: nn.Module, evaluate: Evaluate, *, points: int = 21, margin: float = 0.2
) -> Plane:
    """Measure the error on a grid in the plane through three networks.

    The plane is spanned by ``b - a`` and the part of ``c - a`` that is orthogonal to it. Every parameter and every
    floating-point buffer is interpolated. This happens in ``a`` itself; its values are put back at the end. No point
    allocates memory.

    Args:
        a: The first network.
        b: The second network, with the same names and shapes; not changed.
        c: The third network, likewise; not changed.
        evaluate: Returns the error of a network; called ``points ** 2`` times. With batch norms it should begin with
            :func:`recalibrate_batch_norm_`: outside the triangle an interpolated variance may be negative.
        points: The number of points along each side.
        margin: How far the grid reaches beyond the three networks, as a fraction of their extent on each axis.

    Raises:
        ValueError: Fewer than 2 points, a negative margin, or three networks on one line.
        MaskMismatchError: The networks differ in names, shapes or ties.

    Reference:
        Garipov et al., 2018, arXiv:1802.10026, appendix A.
    """
    if points < 2 or margin < 0:
        raise ValueError(f"points must be at least 2 and margin 0 or more; received {points} and {margin}.")
    x_b, x_c, y_c = _triangle(a, b, c)
    xs, ys = _ticks((0.0, x_b, x_c), points, margin), _ticks((0.0, y_c), points, margin)
    errors = []
    with holding(a, b, c) as held:
        for y in ys:
            gamma, row = y / y_c, []
            for x in xs:
                held.to_plane((x - gamma * x_c) / x_b, gamma)
                row.append(float(evaluate(a)))
            errors.append(tuple(row))
    return Plane(((0.0, 0.0), (x_b, 0.0), (x_c, y_c)), xs, ys, tuple(errors))


def _triangle(a: nn.Module, b: nn.Module, c: nn.Module) -> tuple[float, float, float]:
    """The place of the second network on the first axis, and the two coordinates of the third."""
    first, second, third = (named_state(model, adapters=True) for model in (a, b, c))
    check_alike(first, second)
    check_alike(first, third)
    uu = uv = vv = 0.0
    for name, _ in unwrap(a).named_parameters():
        start = first[plain_name(name)].detach().double()
        u, v = (end[plain_name(name)].detach().to(start) - start for end in (second, third))
        uu, uv, vv = uu + _inner(u, u), uv + _inner(u, v), vv + _inner(v, v)
    height = vv - uv * uv / uu if uu else 0.0
    if height <= 1e-10 * vv:
        raise ValueError(
            "three networks must not lie on one line; these do. Take others, or measure two of them with error_barrier."
        )
    return math.sqrt(uu), uv / math.sqrt(uu), math.sqrt(height)


def _inner(u: Tensor, v: Tensor) -> float:
    return torch.dot(u.flatten(), v.flatten()).item()


def _ticks(places: Sequence[float], points: int, margin: float) -> tuple[float, ...]:
    room = margin * (max(places) - min(places))
    return tuple(np.linspace(min(places) - room, max(places) + room, points).tolist())
