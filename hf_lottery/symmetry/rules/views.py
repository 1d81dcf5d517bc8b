"""Rules for views, which show all or some elements of a tensor under other axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..layout import regroup
from ..nodes import factors, find, freeze, frozen, is_frozen, size_of, wild
from ..trace import Axes, Trace, rule
from .base import carry_values, narrow


@rule("t", "transpose", positions=True)
def transpose(trace: Trace, out: Tensor, source: Tensor, first: int = 0, second: int = 1):
    axes = list(trace.of(source))
    if axes:
        first, second = first % len(axes), second % len(axes) if len(axes) > 1 else 0
        axes[first], axes[second] = axes[second], axes[first]
    carry_values(trace, out, source)
    return tuple(axes)


@rule("permute", positions=True)
def permute(trace: Trace, out: Tensor, source: Tensor, order: Sequence[int]):
    axes = trace.of(source)
    carry_values(trace, out, source)
    return tuple(axes[i] for i in order)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "_reshape_copy", positions=True)
def view(trace: Trace, out: Tensor, source: Tensor, *args):
    if out.dtype != source.dtype:
        return NotImplemented
    carry_values(trace, out, source)
    if not out.numel():
        return _view_of_nothing(trace, out, source)
    axes, result = trace.of(source), []
    for old, new in _segments(source.shape, out.shape):
        found = regroup(axes[slice(*old)], out.shape[slice(*new)])
        if found is None:
            why = f"a view {list(source.shape)} -> {list(out.shape)} that does not align"
            for axis in axes[slice(*old)]:
                freeze(axis, why)
            found = [frozen(size, why) for size in out.shape[slice(*new)]]
        result += found
    return tuple(result)


def _segments(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the shortest runs of axes that hold the same elements before and after a view."""
    i = j = 0
    while i < len(old) or j < len(new):
        start, a, b = (i, j), 1, 1
        while True:
            if a <= b and i < len(old):
                a, i = a * old[i], i + 1
            elif j < len(new):
                b, j = b * new[j], j + 1
            else:
                a, i = a * old[i], i + 1
            if a == b and (i, j) != start and (j > start[1] or i == len(old)):
                break
        yield (start[0], i), (start[1], j)


def _view_of_nothing(trace: Trace, out: Tensor, source: Tensor) -> Axes:
    """Keep the last axes as far as they agree, because an expert without tokens still ties its units."""
    axes = [frozen(size, "empty") for size in out.shape]
    for i in range(1, min(out.ndim, source.ndim) + 1):
        if out.shape[-i] != source.shape[-i] or not out.shape[-i]:
            break
        axes[-i] = trace.of(source)[-i]
    return tuple(axes)


@rule("expand", positions=True)
def expand(trace: Trace, out: Tensor, source: Tensor, *args, **kwargs):
    carry_values(trace, out, source)
    axes, new = trace.of(source), out.ndim - source.ndim
    return tuple(
        axes[i - new] if i >= new and source.shape[i - new] == size else wild(size) for i, size in enumerate(out.shape)
    )


@rule("repeat")
def repeat(trace: Trace, out: Tensor, source: Tensor, repeats: Sequence[int]):
    axes, new = trace.of(source), out.ndim - source.ndim
    return tuple((*wild(r), *(axes[i - new] if i >= new else ())) for i, r in enumerate(repeats))


@rule("unsqueeze", positions=True)
def unsqueeze(trace: Trace, out: Tensor, source: Tensor, axis: int):
    carry_values(trace, out, source)
    axes = list(trace.of(source))
    axes.insert(axis % out.ndim, ())
    return tuple(axes)


@rule("squeeze", positions=True)
def squeeze(trace: Trace, out: Tensor, source: Tensor, axis: int | Sequence[int] | None = None):
    carry_values(trace, out, source)
    chosen = range(source.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    gone = {i % source.ndim for i in chosen if source.shape[i % source.ndim] == 1} if source.ndim else set()
    return tuple(axis for i, axis in enumerate(trace.of(source)) if i not in gone)


@rule("slice", positions=True)
def slice_(trace: Trace, out: Tensor, source: Tensor, axis: int = 0, start=None, end=None, step: int = 1):
    carry_values(trace, out, source)
    axis %= source.ndim
    start = 0 if start is None else start + source.shape[axis] if start < 0 else start
    start = max(min(start, source.shape[axis]), 0)
    if step != 1:
        return _strided(trace, out, source, axis, start, step)
    return tuple(narrow(trace, source, trace.of(source), axis, start, start + out.shape[axis]))


def _strided(trace: Trace, out: Tensor, source: Tensor, axis: int, start: int, step: int) -> Axes:
    """Take one of ``step`` columns: an axis whose length the step divides is a product of rows and columns."""
    axes, size, why = list(trace.of(source)), source.shape[axis], "every other position is taken"
    if all(is_frozen(node) and find(node).kind != "sum" for node in factors(axes[axis])):
        constant = all(node.kind == "wild" for node in factors(axes[axis]))
        axes[axis] = wild(out.shape[axis]) if constant else frozen(out.shape[axis], why)
        return tuple(axes)
    found = regroup([axes[axis]], [size // step, step]) if size % step == 0 else None
    if found is None:
        freeze(axes[axis], why)
        axes[axis] = frozen(out.shape[axis], why)
        return tuple(axes)
    split = source.unflatten(axis, (size // step, step))
    axes = narrow(trace, split, [*axes[:axis], *found, *axes[axis + 1 :]], axis + 1, start % step, start % step + 1)
    first, left = start // step, split.narrow(axis + 1, start % step, 1)
    axes = narrow(trace, left, axes, axis, first, first + out.shape[axis])
    return tuple(layout for i, layout in enumerate(axes) if i != axis + 1)


@rule("select", positions=True)
def select(trace: Trace, out: Tensor, source: Tensor, axis: int, index: int):
    carry_values(trace, out, source)
    axis, index = axis % source.ndim, index % source.shape[axis]
    axes = narrow(trace, source, trace.of(source), axis, index, index + 1)
    return tuple(layout for i, layout in enumerate(axes) if i != axis)


@rule("unbind", positions=True)
def unbind(trace: Trace, out: Sequence[Tensor], source: Tensor, axis: int = 0):
    return [select(trace, piece, source, axis, i) for i, piece in enumerate(out)]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk",
      positions=True)  # fmt: skip
def split(trace: Trace, out: Sequence[Tensor], source: Tensor, sizes: Any, axis: int = 0):
    axis, start, result = axis % source.ndim, 0, []
    for piece in out:
        carry_values(trace, piece, source)
        result.append(tuple(narrow(trace, source, trace.of(source), axis, start, start + piece.shape[axis])))
        start += piece.shape[axis]
    return result


@rule("as_strided")
def as_strided(trace: Trace, out: Tensor, source: Tensor, *args, **kwargs):
    """Pass on the axes that are shown whole; freeze those along which windows are taken."""
    axes = trace.of(source)
    if out is source:  # some kernels only change the memory format of their result
        return axes if [size_of(axis) for axis in axes] == list(out.shape) else NotImplemented
    shown, why = _shown_whole(out, source), "taken in windows"
    for i, axis in enumerate(axes):
        if i not in shown.values():
            freeze(axis, why)
    trace.virtual(tuple(axes[i] for i in shown.values()))
    return tuple(axes[shown[i]] if i in shown else frozen(size, why) for i, size in enumerate(out.shape))


def _shown_whole(out: Tensor, source: Tensor) -> dict[int, int]:
    """Return which axes of a strided view are which axes of its source."""
    order = sorted(
        (step, size, i) for i, (step, size) in enumerate(zip(source.stride(), source.shape, strict=True)) if size > 1
    )
    if not all(b[0] >= a[0] * a[1] for a, b in itertools.pairwise(order)):
        return {}  # places of the source overlap
    above = [step for step, _, _ in order[1:]] + [source.untyped_storage().nbytes()]
    steps = {step: (size, i, beyond) for (step, size, i), beyond in zip(order, above, strict=True)}
    shown = {k: step for k, step in enumerate(out.stride()) if step in steps and out.shape[k] == steps[step][0]}
    shown = {k: step for k, step in shown.items() if out.stride().count(step) == 1}
    while True:
        # What the other axes of the view reach must lie at the start of every axis that is shown whole.
        reached = _addresses(out, [k for k in range(out.ndim) if k not in shown]) - int(source.storage_offset())
        moved = {k for k, step in shown.items() if np.any(reached % steps[step][2] >= step)}
        if not moved:
            break
        shown = {k: step for k, step in shown.items() if k not in moved}
    found = {k: steps[step][1] for k, step in shown.items()}
    inside = _addresses(source, [i for i in range(source.ndim) if i not in found.values()])
    return found if np.isin(reached + int(source.storage_offset()), inside).all() else {}


def _addresses(tensor: Tensor, axes: Sequence[int]) -> np.ndarray:
    found = np.array([int(tensor.storage_offset())])
    for i in axes:
        found = np.unique(found[:, None] + np.arange(tensor.shape[i]) * tensor.stride(i))
    return found
