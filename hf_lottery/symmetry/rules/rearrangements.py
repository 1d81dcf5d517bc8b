"""Rules for operations that join, pad, order or shuffle elements."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..groups import KERNEL
from ..layout import common, concatenate, unify
from ..nodes import Node, atom, factors, freeze, frozen, is_frozen, wild
from ..trace import Trace, rule
from .base import ORDER, SPATIAL, narrow


@rule("cat", positions=True)
def cat(trace: Trace, out: Tensor, tensors: Sequence[Tensor], axis: int = 0):
    axis %= out.ndim
    result = [wild(size) for size in out.shape]
    pieces = []
    for tensor in tensors:
        if tensor.ndim != out.ndim:
            continue  # torch lets an empty one-dimensional tensor join any other
        for i, layout in enumerate(trace.of(tensor)):
            if i != axis:
                result[i] = unify(result[i], layout)
        if tensor.shape[axis]:
            pieces.append(trace.of(tensor)[axis])
    result[axis] = pieces[0] if len(pieces) == 1 else concatenate(pieces)
    _join_values(trace, out, tensors)
    return tuple(result)


def _join_values(trace: Trace, out: Tensor, tensors: Sequence[Tensor]) -> None:
    """Keep joined positions if all index the same axis; freeze their axes if other numbers are among them."""
    known = [trace.values.get(id(tensor)) for tensor in tensors]
    if all(axis is not None for axis in known):
        trace.values[id(out)] = functools.reduce(unify, known)  # pyright: ignore[reportArgumentType]
    for tensor in tensors if id(out) not in trace.values else ():
        trace.lose_positions(tensor, "positions among other numbers")


@rule("stack", positions=True)
def stack(trace: Trace, out: Tensor, tensors: Sequence[Tensor], axis: int = 0):
    """Let each tensor be one place of the new axis, so that tensors which are read apart stay apart."""
    places = Node(len(tensors), "sum", [Node(1) for _ in tensors])
    places.stacked = True
    known = [trace.of(tensor) for tensor in tensors]
    axes = [common([axes[i] for axes in known], places) for i in range(out.ndim - 1)]
    alone = len(tensors) > 1 and places.members
    axes.insert(axis % out.ndim, (places,) if alone else frozen(len(tensors), "a stack"))
    _join_values(trace, out, tensors)
    return tuple(axes)


@rule("constant_pad_nd", parts=True)
def pad(trace: Trace, out: Tensor, source: Tensor, amounts: Sequence[int], value: float = 0):
    axes, left = list(trace.of(source)), source
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        axis = source.ndim - 1 - i
        if not (before or after):
            continue
        if all(is_frozen(node) for node in factors(axes[axis])):
            axes[axis] = frozen(out.shape[axis], "padding")
            continue
        # Negative padding crops.
        kept = max(-before, 0), source.shape[axis] - max(-after, 0)
        if kept != (0, source.shape[axis]):
            axes = narrow(trace, left, axes, axis, *kept)
            left = left.narrow(axis, kept[0], kept[1] - kept[0])
        ends = [wild(n) or (Node(1),) if n > 0 else None for n in (before, after)]
        pieces = [piece for piece in (ends[0], axes[axis], ends[1]) if piece is not None]
        axes[axis] = concatenate(pieces) if len(pieces) > 1 else pieces[0]
    trace.reads.use(left, made=[out])
    return tuple(axes)


@rule("roll", "flip", "cumsum", "cumprod", "logcumsumexp", "_fft_r2c", "_fft_c2r", "_fft_c2c")
def ordered(trace: Trace, out: Any, source: Tensor, *args, **kwargs):
    """Freeze the named axes, because their order matters."""
    named = trace.given["dims"] if "dims" in trace.given else trace.given["dim"]
    chosen = {axis % source.ndim for axis in ([named] if isinstance(named, int) else named)}
    if not chosen:
        return NotImplemented
    axes = list(trace.of(source))
    for axis in chosen:
        freeze(axes[axis], ORDER)
        axes[axis] = frozen(out.shape[axis], ORDER)
    trace.virtual(tuple(layout for i, layout in enumerate(axes) if i not in chosen))
    return tuple(axes)


@rule("cummax", "cummin")
def running(trace: Trace, out: Any, source: Tensor, axis: int):
    axes = ordered(trace, out[0], source)
    trace.values[id(out[1])] = axes[axis % source.ndim]
    return [axes, axes]


@rule("unfold")
def unfold(trace: Trace, out: Tensor, source: Tensor, axis: int, size: int, step: int):
    axes = list(trace.of(source))
    axis %= max(source.ndim, 1)
    freeze(axes[axis], "taken in windows")
    axes[axis] = frozen(out.shape[axis], "taken in windows")
    return (*axes, frozen(size, "taken in windows"))


@rule("im2col")
def im2col(trace: Trace, out: Tensor, source: Tensor, *args):
    axes = trace.of(source)
    for axis in axes[-2:]:
        freeze(axis, SPATIAL)
    window = frozen(out.shape[-2] // source.shape[-3], KERNEL)
    return (*axes[:-3], (*axes[-3], *window), frozen(out.shape[-1], SPATIAL))


@rule("col2im")
def col2im(trace: Trace, out: Tensor, source: Tensor, *args):
    axes = trace.of(source)
    freeze(axes[-1], SPATIAL)
    channels, window = atom(out.shape[-3]), frozen(source.shape[-2] // out.shape[-3], KERNEL)
    unify(axes[-2], (*channels, *window))
    return (*axes[:-2], channels, *(frozen(size, SPATIAL) for size in out.shape[-2:]))


@rule("view_as_complex")
def view_as_complex(trace: Trace, out: Tensor, source: Tensor):
    freeze(trace.of(source)[-1], "real and imaginary part")
    return trace.of(source)[:-1]


@rule("view_as_real")
def view_as_real(trace: Trace, out: Tensor, source: Tensor):
    return (*trace.of(source), frozen(2, "real and imaginary part"))


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def shuffle(trace: Trace, out: Tensor, source: Tensor, factor: int):
    """Split channels into channels and places, or into groups and channels, which change their order."""
    axes = trace.of(source)
    if "channel" in trace.operation:
        outer, inner = atom(factor), atom(source.shape[1] // factor)
        unify(axes[1], (*outer, *inner))
        return (axes[0], (*inner, *outer), *axes[2:])
    for axis in axes[-2:]:
        freeze(axis, SPATIAL)
    channels = atom(min(source.shape[-3], out.shape[-3]))
    places = frozen(factor * factor, SPATIAL)
    if "un" in trace.operation:
        unify(axes[-3], channels)
        made = (*channels, *places)
    else:
        unify(axes[-3], (*channels, *places))
        made = channels
    return (*axes[:-3], made, *(frozen(size, SPATIAL) for size in out.shape[-2:]))


@rule("diagonal", "diag_embed", "diagonal_copy")
def diagonal(trace: Trace, out: Tensor, source: Tensor, *args, **kwargs):
    trace.freeze(source, "a diagonal")
    return tuple(frozen(size, "a diagonal") for size in out.shape)
