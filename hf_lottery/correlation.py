"""Correlations between the units of two networks on the same data, from one forward pass of each per batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .mask import plain_name, unwrap
from .symmetry.spec import Axis, PermutationSpec

Forward = Callable[[nn.Module, Any], Any]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Site(NamedTuple):
    """Where an axis is observed: at the input or output of a module, in a part of its channels."""

    module: str
    at_input: bool
    channel: int
    axis: Axis


def correlations(
    spec: PermutationSpec,
    groups: Collection[str],
    *,
    source: nn.Module,
    target: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None = None,
) -> list[tuple[Axis, np.ndarray]]:
    """Pearson correlations of every axis on which one of ``groups`` can be observed.

    Args:
        spec: The symmetries of both networks.
        groups: The groups wanted.
        source: One network.
        target: The other.
        batches: Inputs of both.
        forward: How to run a network on a batch; see :func:`run`.

    Returns:
        An axis, and float64 ``[target unit, source unit]`` in [-1, 1]; a unit that never varies correlates 0.

    Raises:
        ValueError: There are no batches, or an activation is not finite.
    """
    source, target = unwrap(source), unwrap(target)
    found = sites(spec, source, groups)
    moments: dict[int, Moments] = {}
    count = 0
    for count, batch in enumerate(batches, 1):
        first: dict[int, list[Tensor]] = {}
        keep: list[tuple[int, Tensor]] = []  # while the first batch runs, two sites with one input are recognised
        with evaluating(source), _watching(source, found, lambda k, x: _hold(k, x, first, keep, moments, count == 1)):
            run(source, batch, forward)
        if count == 1:
            found = _distinct(found, first, keep)
        second: dict[int, list[Tensor]] = {}
        with evaluating(target), _watching(target, found, lambda k, x: second.setdefault(k, []).append(x)):
            run(target, batch, forward)
    if not count:
        raise ValueError("activation matching must see at least one batch; received none. An iterator may be used up.")
    return []


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode without gradients; every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
