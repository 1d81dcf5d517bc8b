"""Rules for operations that keep every element in its place, and for constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layout import unify
from ..nodes import freeze, frozen, wild
from ..trace import Trace, rule
from .base import broadcast, narrow, tensors_in


@rule(
    "pointwise",
    "copy",
    "floor_divide",
    "polar",
    "bucketize",
    "complex",
    "log_sigmoid_forward",
    "hardswish",
    "prelu",
    "_prelu_kernel",
    "rrelu_with_noise",
    "log_sigmoid",
    "masked_fill",
)
def pointwise(trace: Trace, out: Any, *args, **kwargs):
    tensors = tensors_in(args, kwargs)
    if trace.operation == "bucketize":
        tensors = tensors[:1]
    results = [out] if isinstance(out, Tensor) else [t for t in out if t.numel()]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    if any(tensor.shape != shape for tensor in results):
        return NotImplemented
    axes = broadcast(trace, tensors, shape)
    return axes if isinstance(out, Tensor) else [axes if t.numel() else None for t in out]


@rule(
    "detach",
    "clone",
    "contiguous",
    "alias",
    "_to_copy",
    "lift_fresh",
    "lift_fresh_copy",
    "_conj",
    "dropout",
    "_conj_physical",
    "resolve_conj",
    "view_as",
    positions=True,
)
def same(trace: Trace, out: Tensor, source: Tensor, *args, **kwargs):
    if id(source) not in trace.axes or id(source) in trace.constants:
        trace.constants.add(id(out))
    if id(source) in trace.values:
        if out.is_floating_point():
            trace.lose_positions(source, "positions used as numbers")
        else:
            trace.values[id(out)] = trace.values[id(source)]
    return trace.of(source)


@rule("glu")
def glu(trace: Trace, out: Tensor, source: Tensor, axis: int = -1):
    axis %= source.ndim
    half = source.shape[axis] // 2
    first, second = (narrow(trace, source, trace.of(source), axis, at, at + half) for at in (0, half))
    return tuple(unify(a, b) for a, b in zip(first, second, strict=True))


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like",
      "full_like", "empty_like", "scalar_tensor", "fill", "zero", "empty_strided", "new_empty_strided")  # fmt: skip
def constant(trace: Trace, out: Tensor, *args, **kwargs):
    return tuple(wild(size) for size in out.shape)


@rule("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices", "hann_window")
def counted(trace: Trace, out: Tensor, *args, **kwargs):
    return tuple(frozen(size, "a constant that counts") for size in out.shape)


@rule("tril", "triu")
def triangle(trace: Trace, out: Tensor, source: Tensor, *args):
    axes = trace.of(source)
    for axis in axes[-2:]:
        freeze(axis, "a triangle is cut out")
    return (*axes[:-2], *(frozen(size, "a triangle is cut out") for size in out.shape[-2:]))
