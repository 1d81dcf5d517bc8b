"""Helpers that several rules share: broadcast axes, cut out a block, and pass positions on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..groups import PRODUCT
from ..layout import cut, unify
from ..nodes import Layout, factors, find, freeze, frozen, is_frozen, size_of, wild
from ..trace import Axes, Trace

ORDER = "its order matters to the operation"
SPATIAL = "a spatial axis"


def broadcast(trace: Trace, tensors: Sequence[Tensor], shape: Sequence[int]) -> Axes:
    """Unify tensors as a pointwise operation does; an axis that is constant or of length 1 takes the other's layout."""
    return broadcast_axes([(tensor.shape, trace.of(tensor)) for tensor in tensors], shape)


def broadcast_axes(labelled: Sequence[tuple[Sequence[int], Axes]], shape: Sequence[int]) -> Axes:
    """Unify axes as :func:`broadcast` does, given pairs of a shape and its axes."""
    result: list[Layout] = [wild(size) for size in shape]
    for sizes, axes in labelled:
        start = len(shape) - len(axes)
        for i, axis in enumerate(axes):
            if sizes[i] != 1:
                result[start + i] = unify(result[start + i], axis)
    return tuple(result)


def contract(trace: Trace, *operands: tuple[Tensor, int]) -> None:
    """Record a sum over an axis of each of some operands: one reads units by a weight, or units meet each other."""
    if not trace.origins.contract(*operands):
        trace.mix(*(trace.of(tensor)[axis] for tensor, axis in operands), by=PRODUCT)


def tensors_in(*args: Any) -> list[Tensor]:
    """Return all tensors among arguments, also inside lists and dicts."""
    return [v for v in tree_leaves(args) if isinstance(v, Tensor)]


def carry_values(trace: Trace, out: Tensor, source: Tensor) -> None:
    """Record that ``out`` holds the same positions as ``source``, if ``source`` holds positions."""
    if id(source) in trace.values:
        trace.values[id(out)] = trace.values[id(source)]


def narrow(trace: Trace, source: Tensor, axes: Sequence[Layout], axis: int, start: int, stop: int) -> list[Layout]:
    """Cut one of a tensor's axes to a block, and return all axes."""
    axes = list(axes)
    if (start, stop) == (0, size_of(axes[axis])):
        return axes
    why = "cut at fixed places"
    if stop <= start:
        axes[axis] = frozen(0, why)
        return axes
    if all(is_frozen(node) and find(node).kind != "sum" for node in factors(axes[axis])):
        # Frozen axes, such as positions and batches, are not cut, because all their blocks must be treated alike.
        constant = all(node.kind == "wild" for node in factors(axes[axis]))
        axes[axis] = wild(stop - start) if constant else frozen(stop - start, why)
        return axes
    found = cut(axes[axis], start, stop)
    if found is None:
        freeze(axes[axis], why)
        axes[axis] = frozen(stop - start, why)
        return axes
    trace.reads.cut(source, axis, axes[axis])
    block, stand_in = found
    return [
        block if i == axis else tuple(inside for node in layout for inside in stand_in(node))
        for i, layout in enumerate(axes)
    ]
