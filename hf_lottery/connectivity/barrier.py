"""Connectivity: what happens on the straight line between two networks.

References:
    Frankle, Dziugaite, Roy and Carbin, 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis",
    arXiv:1912.05671.
    Entezari, Sedghi, Saukh and Neyshabur, 2022, "The Role of Permutation Invariance in Linear Mode Connectivity of
    Neural Networks", arXiv:2110.06296.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ..networks.display import html_table
from ..networks.names import named_state
from .interpolation import holding
from .repair import Repair

Evaluate = Callable[[nn.Module], "float | Tensor"]


@dataclass(frozen=True)
class Barrier:
    """Errors along the straight line between two networks, as :func:`error_barrier` returns them.

    ``hf_lottery.report.plot_barriers`` draws one or several.

    Attributes:
        alphas: Places on the line: 0 is the first network, 1 the second.
        errors: The error of the interpolated network at each place.

    Example:
        >>> bump = Barrier((0.0, 0.5, 1.0), (0.25, 0.75, 0.5))
        >>> bump.barrier, bump.curve[1]
        (0.375, (0.5, 0.75))
    """

    alphas: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """The pairs ``(alpha, error)`` of all points."""
        return tuple(zip(self.alphas, self.errors, strict=True))

    @property
    def barrier(self) -> float:
        """The largest error on the line minus the mean error of the two ends (Frankle et al., 2020).

        It is 0 or more, and NaN if an error is NaN.
        """
        return float(np.max(self.errors)) - (self.errors[0] + self.errors[-1]) / 2

    @property
    def linear_barrier(self) -> float:
        """The largest excess over the straight line between the errors of the two ends (Entezari et al., 2022).

        It is 0 or more, and NaN if an error is NaN.
        """
        first, last = self.errors[0], self.errors[-1]
        return float(np.max([error - ((1 - alpha) * first + alpha * last) for alpha, error in self.curve]))

    def __repr__(self) -> str:
        ends = f"errors {self.errors[0]:.4g} and {self.errors[-1]:.4g} at the ends"
        return f"Barrier({self.barrier:.4g}: {ends}, {np.max(self.errors):.4g} at most, {len(self.alphas)} points)"

    def _repr_html_(self) -> str:
        rows = [[f"{alpha:.4g}", f"{error:.4g}"] for alpha, error in self.curve]
        return f"<p>barrier {self.barrier:.4g}</p>\n{html_table(['alpha', 'error'], rows, limit=50)}"


def error_barrier(
    a: nn.Module, b: nn.Module, evaluate: Evaluate, *, points: int = 11, repair: Repair | None = None
) -> Barrier:
    """Measure the error of the networks on the straight line from ``a`` to ``b``.

    Every parameter and every floating-point buffer is interpolated. This happens in ``a`` itself; its values are put
    back at the end. One copy of ``a`` is held in memory, and no point allocates more, except for what ``evaluate`` and
    ``repair`` need.

    Args:
        a: The first network.
        b: The second network, with the same names and shapes; not changed.
        evaluate: Returns the error of a network, such as ``1 - accuracy`` or a loss; lower is better. It receives
            ``a`` and should put it in eval mode. Under ``torch.distributed`` it may run on this process's share of the
            data, but it should return the error over all processes.
        points: The number of networks to evaluate, evenly spaced from ``a`` to ``b`` with both ends.
        repair: ``repair(model, alpha)``, called before every evaluation, also at the ends. Interpolated batch-norm
            statistics belong to no network, so with batch norms pass ``recalibrated(batches)``, or
            ``repaired(a, b, batches)`` for REPAIR.

    Raises:
        ValueError: Fewer than 2 points.
        MaskMismatchError: The networks differ in names, shapes or ties.

    Example:
        >>> a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(a.weight, -1.0), nn.init.constant_(b.weight, 1.0)
        >>> error_barrier(a, b, lambda model: 1 - model.weight.item() ** 2, points=3)
        Barrier(1: errors 0 and 0 at the ends, 1 at most, 3 points)

    Reference:
        Frankle et al., 2020, arXiv:1912.05671, section 2. The code of Oh et al., 2025, arXiv:2504.05357, interpolates
        only convolutions, linear layers and batch norms, and runs over the training set at every point.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, the two ends; received {points}.")
    alphas = [i / (points - 1) for i in range(points)]
    errors = []
    with holding(a, b) as held:
        for alpha in alphas:
            held.to_line(alpha)
            if repair is not None:
                repair(a, alpha)
            errors.append(float(evaluate(a)))
    return Barrier(tuple(alphas), tuple(errors))


def sgd_noise_stability(
    start: Callable[[int], nn.Module],
    train: Callable[[nn.Module, int], object],
    evaluate: Evaluate,
    *,
    points: int = 11,
    repair: Repair | None = None,
) -> Barrier:
    """Measure the barrier between two trainings that differ only in SGD noise: data order, augmentation, dropout.

    ``start`` decides the protocol. Frankle et al. start both runs from the same state, and call a network stable if the
    barrier in error is below 2 percentage points. The code of Oh et al. transfers one signed mask to two
    initializations. That asks for more, because the ends differ in magnitudes too.

    Args:
        start: ``start(i)`` returns the network that run ``i`` (0 or 1) starts from. Each run needs a network of its
            own.
        train: ``train(model, i)`` trains the network in place, with the data order of run ``i``.
        evaluate: As for :func:`error_barrier`.
        points: As for :func:`error_barrier`.
        repair: As for :func:`error_barrier`; ``recalibrated(batches)`` for networks with batch norms.

    Raises:
        ValueError: Fewer than 2 points, or both runs are given the same tensors; nothing was trained.
        MaskMismatchError: The networks differ in names, shapes or ties.

    Reference:
        Frankle et al., 2020, arXiv:1912.05671 (30 points, and the mean over three pairs; this function runs one pair).
        Oh et al., 2025, arXiv:2504.05357.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, the two ends; received {points}.")
    first, second = start(0), start(1)
    states = (named_state(model, adapters=True) for model in (first, second))
    storages = [{t.data_ptr() for t in state.values() if t.numel()} for state in states]
    if storages[0] & storages[1]:
        raise ValueError(
            "start must give each run a network of its own; received two that share tensors. Return a deep copy."
        )
    for run, model in enumerate((first, second)):
        train(model, run)
    return error_barrier(first, second, evaluate, points=points, repair=repair)
