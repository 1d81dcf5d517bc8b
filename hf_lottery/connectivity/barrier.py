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
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ..networks.names import named_state
from ..report import plot_barriers
from .interpolation import holding
from .repair import Repair

Evaluate = Callable[[nn.Module], "float | Tensor"]


@dataclass(frozen=True)
class Barrier:
    """Errors along the straight line between two networks; what :func:`error_barrier` returns.

    Attributes:
        alphas: Where on the line, 0 the first network and 1 the second.
        errors: The error of the interpolated network there.

    Example:
        >>> bump = Barrier((0.0, 0.5, 1.0), (0.25, 0.75, 0.5))
        >>> bump.barrier, bump.curve[1]
        (0.375, (0.5, 0.75))
    """

    alphas: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """``(alpha, error)`` of every point."""
        return tuple(zip(self.alphas, self.errors, strict=True))

    @property
    def barrier(self) -> float:
        """The largest error on the line minus the mean error of the ends (Frankle et al., 2020); 0 or more.

        NaN if an error is.
        """
        return float(np.max(self.errors)) - (self.errors[0] + self.errors[-1]) / 2

    @property
    def linear_barrier(self) -> float:
        """The largest excess over the straight line between the errors of the ends (Entezari et al., 2022).

        NaN if an error is.
        """
        first, last = self.errors[0], self.errors[-1]
        return float(np.max([error - ((1 - alpha) * first + alpha * last) for alpha, error in self.curve]))

    def plot(self, path: str | Path, *, ylabel: str = "error", title: str = "") -> None:
        """Draw the curve as a PNG, with its numbers beside it as CSV; see :func:`plot_barriers` for several.

        Args:
            path: The file to write.
            ylabel: Name of the error.
            title: Title of the picture; by default the barrier.

        Raises:
            ImportError: matplotlib is not installed.
        """
        label = f"barrier {self.barrier:.4g}"
        plot_barriers(path, {label: dict(self.curve)}, ylabel=ylabel, title=title or label)


def error_barrier(
    a: nn.Module, b: nn.Module, evaluate: Evaluate, *, points: int = 11, repair: Repair | None = None
) -> Barrier:
    """The error of the networks on the straight line from ``a`` to ``b``.

    Every parameter and every floating-point buffer is interpolated, in ``a`` itself, which is as before at the end. One
    copy of ``a`` is held; no point allocates memory but for what ``evaluate`` and ``repair`` need.

    Args:
        a: The first network.
        b: The second, of the same names and shapes; not changed.
        evaluate: The error of a network, such as ``1 - accuracy`` or a loss: lower is better. It is given ``a``, and is
            to put it in eval mode. Under ``torch.distributed`` it may take this process's share of the data and is to
            return the error over all of them.
        points: How many networks, evenly from ``a`` to ``b``, the ends included.
        repair: ``repair(model, alpha)``, called before every evaluation, at the ends too. Interpolated batch-norm
            statistics are of no network: pass ``recalibrated(batches)``, or ``repaired(a, b, batches)`` for REPAIR.

    Raises:
        ValueError: Fewer than 2 points.
        MaskMismatchError: The networks differ in names, shapes or ties.

    Example:
        >>> a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(a.weight, -1.0), nn.init.constant_(b.weight, 1.0)
        >>> error_barrier(a, b, lambda model: 1 - model.weight.item() ** 2, points=3)
        Barrier(alphas=(0.0, 0.5, 1.0), errors=(0.0, 1.0, 0.0))

    Reference:
        Frankle et al., 2020, arXiv:1912.05671, section 2. The code of Oh et al., 2025, arXiv:2504.05357, interpolates
        convolutions, linear layers and batch norms alone, and runs over the training set at every point.
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
    """The barrier between two trainings that differ in the noise of SGD alone: order of data, augmentation, dropout.

    What ``start`` gives is the protocol. The same state twice is that of Frankle et al.; a network is called stable if
    the barrier in error is below 2 points. One signed mask transferred to the initializations 0 and 1 is what the code
    of Oh et al. does; it asks for more, as the ends differ in magnitudes too.

    Args:
        start: ``start(i)`` gives the network that run ``i``, 0 or 1, starts from; a network of its own for each.
        train: ``train(model, i)`` trains it in place, with the data order of run ``i``.
        evaluate: As for :func:`error_barrier`.
        points: As for :func:`error_barrier`.
        repair: As for :func:`error_barrier`; ``recalibrated(batches)`` for networks with batch norms.

    Raises:
        ValueError: Fewer than 2 points, or both runs are given the same tensors; nothing was trained.
        MaskMismatchError: The networks differ in names, shapes or ties.

    Reference:
        Frankle et al., 2020, arXiv:1912.05671 (30 points, and the mean over three pairs; ours is one pair). Oh et al.,
        2025, arXiv:2504.05357.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, the two ends; received {points}.")
    first, second = start(0), start(1)
    storages = [{t.data_ptr() for t in named_state(model).values() if t.numel()} for model in (first, second)]
    if storages[0] & storages[1]:
        raise ValueError(
            "start must give each run a network of its own; received two that share tensors. Return a deep copy."
        )
    for run, model in enumerate((first, second)):
        train(model, run)
    return error_barrier(first, second, evaluate, points=points, repair=repair)
