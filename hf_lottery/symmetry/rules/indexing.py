"""Rules for operations that look up, write or read by position or by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layout import unify
from ..nodes import Layout, factors, freeze, frozen
from ..trace import Axes, Trace, rule
from .base import broadcast, carry_values, narrow, tensors_in


@rule("embedding", positions=True)
def embedding(trace: Trace, out: Tensor, weight: Tensor, indices: Tensor, *args):
    return _looked_up(trace, indices, trace.of(weight), 0)


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(trace: Trace, out: Sequence[Tensor], weight: Tensor, *args, **kwargs):
    """Sum, average or take the maximum of rows that are looked up; the columns keep their axis."""
    rows, columns = trace.of(weight)
    freeze(rows, "looked up by position")
    for tensor in tensors_in(args, kwargs):
        trace.freeze(tensor, "which bag it is in")
    bags = frozen(out[0].shape[0], "bags of positions")
    rest = [tuple(frozen(size, "bags of positions") for size in tensor.shape) for tensor in out[1:]]
    return [(bags, columns), *rest]


@rule("index_select", positions=True)
def index_select(trace: Trace, out: Tensor, source: Tensor, axis: int, indices: Tensor):
    return _looked_up(trace, indices, trace.of(source), axis % source.ndim)


def _looked_up(trace: Trace, indices: Tensor, axes: Axes, axis: int) -> Axes:
    """Return the axes of a lookup along one axis."""
    _tie_values(trace, indices, axes[axis])
    return (*axes[:axis], *trace.of(indices), *axes[axis + 1 :])


def _tie_values(trace: Trace, indices: Tensor, axis: Layout) -> None:
    known = trace.values.get(id(indices))
    if known is None:
        freeze(axis, "looked up by position")
    else:
        trace.lookups.append((tuple(node for layout in trace.of(indices) for node in layout), unify(known, axis)))


@rule("index", "_unsafe_index", positions=True, parts=True)
def index(trace: Trace, out: Tensor, source: Tensor, indices: Sequence[Tensor | None]):
    if id(source) in trace.values:
        trace.lose_positions(source, "positions looked up")
    entries = [(i, entry) for i, entry in enumerate(indices) if entry is not None]
    axes = trace.of(source)
    if len(entries) == 1 and (fixed := _fixed_index(trace, entries[0][1])) is not None:
        axis, at = entries[0][0], fixed % source.shape[entries[0][0]]
        trace.reads.use(source.narrow(axis, at, 1), entries[0][1], made=[out])
        return tuple(narrow(trace, source, axes, axis, at, at + 1))
    trace.reads.use(source, *(entry for _, entry in entries), made=[out])
    if any(entry.dtype in (torch.bool, torch.uint8) for _, entry in entries):
        return _masked(trace, out, axes, entries)
    for i, entry in entries:
        _tie_values(trace, entry, axes[i])
    return _around(trace, axes, entries)


def _around(trace: Trace, axes: Axes, entries: Sequence[tuple[int, Tensor]]) -> Axes:
    """Return the axes of a lookup: the axes of the positions replace the axes that they index."""
    used = [i for i, _ in entries]
    tensors = [entry for _, entry in entries]
    looked = broadcast(trace, tensors, torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    rest = tuple(layout for i, layout in enumerate(axes) if i not in used)
    together = used == list(range(used[0], used[-1] + 1))
    at = used[0] if together else 0
    return (*rest[:at], *looked, *rest[at:])


def _masked(trace: Trace, out: Tensor, axes: Axes, entries: Sequence[tuple[int, Tensor]]) -> Any:
    """Return the axes of the elements that a boolean mask picks from neighbouring axes."""
    (start, mask), stop = entries[0], entries[0][0] + entries[0][1].ndim
    if len(entries) > 1:
        return NotImplemented
    for axis in (*axes[start:stop], *trace.of(mask)):
        freeze(axis, "picked by a mask")
    return (*axes[:start], frozen(out.shape[start], "picked by a mask"), *axes[stop:])


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(trace: Trace, out: Tensor, source: Tensor, indices: Sequence[Tensor | None], values: Tensor, *args):
    entries = [(i, entry) for i, entry in enumerate(indices) if entry is not None]
    axes, why = list(trace.of(source)), "written by position"
    masked = any(entry.dtype in (torch.bool, torch.uint8) for _, entry in entries)
    if masked and len(entries) > 1:
        return NotImplemented
    width = entries[0][1].ndim if masked else 1
    used = [i + j for i, _ in entries for j in range(width)]
    for i in used:
        freeze(axes[i], why)
        axes[i] = frozen(source.shape[i], why)
    for _, entry in entries:
        trace.freeze(entry, why)
    rest = [i for i in range(source.ndim) if i not in used]
    after = len([i for i in rest if i > used[-1]]) if used == list(range(used[0], used[-1] + 1)) else len(rest)
    given = trace.of(values)
    for k, layout in enumerate(reversed(given)):
        i = rest[-1 - k] if k < after else None
        if i is not None and values.shape[-1 - k] == source.shape[i] != 1:
            axes[i] = unify(axes[i], layout)
        elif values.shape[-1 - k] != 1:
            freeze(layout, why)
            for j in rest[: len(rest) - after]:
                freeze(axes[j], why)
    # An axis that was written only with single values stays constant, and so does the rest of a constant.
    return tuple(axes)


@rule("masked_scatter")
def masked_scatter(trace: Trace, out: Tensor, source: Tensor, mask: Tensor, values: Tensor):
    """Freeze axes that are filled in order; rows that are written as a whole keep their axis."""
    axes, why = list(broadcast(trace, [source], out.shape)), "written by a mask"
    whole = mask.ndim == 0 or mask.shape[-1] == 1 or all(n.kind == "wild" for n in factors(trace.of(mask)[-1]))
    rows = whole and values.ndim and values.shape[-1] == out.shape[-1]
    given = trace.of(values)
    for axis in (*axes[:-1], *given[:-1], *trace.of(mask)):
        freeze(axis, why)
    kept = [frozen(size, why) for size in out.shape[:-1]]
    if rows:
        return (*kept, unify(axes[-1], given[-1]))
    freeze((*axes[-1], *(given[-1] if given else ())), why)
    return (*kept, frozen(out.shape[-1], why))


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def index_add(trace: Trace, out: Tensor, source: Tensor, axis: int, indices: Tensor, values: Any = None, *args, **kw):
    axes, why = list(trace.of(source)), "written by position"
    axis %= max(source.ndim, 1)
    freeze((*axes[axis], *trace.of(indices)[0]) if indices.ndim else axes[axis], why)
    axes[axis] = frozen(source.shape[axis], why)
    if isinstance(values, Tensor) and values.ndim:
        for i, layout in enumerate(trace.of(values)):
            if i == axis:
                freeze(layout, why)
            else:
                axes[i] = unify(axes[i], layout)
    return tuple(axes)


@rule("repeat_interleave")
def repeat_interleave(trace: Trace, out: Tensor, repeats: Tensor, *args, **kwargs):
    trace.freeze(repeats, "a number of repeats")
    return tuple(frozen(size, "a number of repeats") for size in out.shape)


def _fixed_index(trace: Trace, index: Any) -> int | None:
    """Return the single position in a constant such as ``[-2]``; None for any other index."""
    constant = id(index) in trace.constants or id(index) not in trace.axes
    return int(index) if constant and index.ndim == 1 and index.numel() == 1 and index.dtype != torch.bool else None


@rule("gather", positions=True)
def gather(trace: Trace, out: Tensor, source: Tensor, axis: int, indices: Tensor, **kwargs):
    axis %= source.ndim
    axes = list(trace.of(source))
    _tie_values(trace, indices, axes[axis])
    carry_values(trace, out, source)
    result = []
    for i, layout in enumerate(trace.of(indices)):
        whole = i != axis and indices.shape[i] == source.shape[i]
        if i != axis and not whole:
            freeze(axes[i], "looked up in parts")
        result.append(unify(layout, axes[i]) if whole else layout)
    return tuple(result)


@rule("scatter", "scatter_add", "scatter_reduce", positions=True)
def scatter(trace: Trace, out: Tensor, source: Tensor, axis: int, indices: Tensor, value: Any = None, *args, **kwargs):
    axis %= source.ndim
    known, axes = trace.values.get(id(indices)), list(trace.of(source))
    if known is None:
        freeze(axes[axis], "written by position")
        axes[axis] = frozen(source.shape[axis], "written by position")
    else:
        axes[axis] = unify(known, axes[axis])
    for tensor in (indices, value):
        if isinstance(tensor, Tensor) and tensor.ndim:
            for i, layout in enumerate(trace.of(tensor)):
                if i != axis and tensor.shape[i] == source.shape[i]:
                    axes[i] = unify(axes[i], layout)
                elif i != axis:
                    freeze(axes[i], "written in parts")
                else:
                    freeze(layout, "written by position")
    return tuple(axes)


@rule("nonzero", "bincount", "histc", "unique", "_unique2", "unique_consecutive", "unique_dim", "masked_select")
def counted_up(trace: Trace, out: Any, source: Tensor, *args, **kwargs):
    """Freeze all axes, because the result depends on positions or values and keeps no axis."""
    for tensor in tensors_in((source, args), kwargs):
        trace.freeze(tensor, "its positions are read")
    results = [out] if isinstance(out, Tensor) else list(out)
    made = [tuple(frozen(size, "positions that were read") for size in tensor.shape) for tensor in results]
    return made[0] if isinstance(out, Tensor) else made


@rule("_local_scalar_dense", "is_nonzero", "equal")
def scalar(trace: Trace, out: Any, *tensors: Tensor):
    for tensor in tensors:
        trace.freeze(tensor, "read as a number")


@rule("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_size", "sym_numel", "sym_stride")
def nothing(trace: Trace, out: Any, *args, **kwargs):
    """Do nothing, because the operation only checks a condition and makes no tensor."""
