"""Rules for products that sum over an axis: matrix products, convolutions, attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..groups import KERNEL, PRODUCT
from ..layout import unify
from ..nodes import atom, freeze, frozen, size_of
from ..trace import Trace, rule
from .base import ORDER, SPATIAL, broadcast_axes, contract


@rule("mm", "bmm")
def matmul(trace: Trace, out: Tensor, first: Tensor, second: Tensor, *args):
    a, b = trace.of(first), trace.of(second)
    contract(trace, (first, -1), (second, -2))
    summed = unify(a[-1], b[-2])
    axes = (unify(a[0], b[0]), a[1], b[2]) if out.ndim == 3 else (a[0], b[1])
    # Every term of the sum has all of these axes; a product of a tensor with itself has some of them twice.
    trace.virtual((*axes, summed))
    return axes


@rule("addmm", "baddbmm")
def addmm(trace: Trace, out: Tensor, bias: Tensor, first: Tensor, second: Tensor, **kwargs):
    axes = matmul(trace, out, first, second)
    trace.virtual(axes)
    added = trace.of(bias)
    start = out.ndim - bias.ndim
    return tuple(
        unify(layout, added[i - start]) if i >= start and bias.shape[i - start] != 1 else layout
        for i, layout in enumerate(axes)
    )


@rule("mv", "dot", "vdot")
def contract_vector(trace: Trace, out: Tensor, first: Tensor, second: Tensor):
    contract(trace, (second, 0), (first, -1))
    unify(trace.of(first)[-1], trace.of(second)[0])
    return trace.of(first)[:-1]


@rule("addmv", "addr", "outer", "ger")
def outer(trace: Trace, out: Tensor, *tensors: Tensor, **kwargs):
    """Tie the axes of outer products, with or without an added tensor."""
    axes = tuple(layout for tensor in tensors[-2:] for layout in trace.of(tensor))
    if trace.operation == "addmv":
        axes = contract_vector(trace, out, *tensors[-2:])
    trace.virtual(axes)
    return tuple(unify(a, b) for a, b in zip(axes, trace.of(tensors[0]), strict=True)) if len(tensors) == 3 else axes


@rule("linalg_solve_triangular", "triangular_solve", "linalg_solve", "_linalg_solve_ex")
def solve_triangular(trace: Trace, out: Any, first: Tensor, second: Tensor, **kwargs):
    """Freeze the equations of ``first @ out = second``, which have a fixed order."""
    a, b = trace.of(first), trace.of(second)
    if trace.operation != "linalg_solve_triangular" or not trace.given.get("left", True):
        return NotImplemented
    for axis in (*a[-2:], b[-2]):
        freeze(axis, ORDER)
    lead = broadcast_axes([(first.shape[:-2], a[:-2]), (second.shape[:-2], b[:-2])], out.shape[:-2])
    return (*lead, frozen(out.shape[-2], ORDER), b[-1])


@rule("_cdist_forward", "_euclidean_dist")
def distances(trace: Trace, out: Tensor, first: Tensor, second: Tensor, *args):
    a, b = trace.of(first), trace.of(second)
    summed = unify(a[-1], b[-1])
    trace.mix(summed)
    lead = broadcast_axes([(first.shape[:-2], a[:-2]), (second.shape[:-2], b[:-2])], out.shape[:-2])
    trace.virtual((*lead, a[-2], b[-2], summed))
    return (*lead, a[-2], b[-2])


@rule("_weight_norm_interface")
def weight_norm(trace: Trace, out: Any, direction: Tensor, length: Tensor, axis: int = 0):
    axes = list(trace.of(direction))
    axes[axis] = unify(axes[axis], trace.of(length)[axis])
    return [tuple(axes), tuple(layout if i == axis else () for i, layout in enumerate(axes))]


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler", "grid_sampler")
def grid_sampler(trace: Trace, out: Tensor, source: Tensor, grid: Tensor, *args):
    x, g = trace.of(source), trace.of(grid)
    for axis in (*x[2:], g[-1]):
        freeze(axis, SPATIAL)
    return (unify(x[0], g[0]), x[1], *g[1:-1])


@rule("_trilinear")
def trilinear(trace: Trace, out: Tensor, first: Tensor, second: Tensor, third: Tensor, *args, **kwargs):
    """Sum over axes of the product of three tensors, each of which first gets new axes of length 1."""
    given, operands = trace.given, []
    for tensor, new in zip((first, second, third), ("expand1", "expand2", "expand3"), strict=True):
        shape, axes = [*tensor.shape], [*trace.of(tensor)]
        for axis in sorted(given[new]):
            shape.insert(axis, 1)
            axes.insert(axis, ())
        operands.append((shape, axes))
    for axis in given["sumdim"]:
        named = ((first, "expand1"), (third, "expand3"), (second, "expand2"))
        contract(trace, *((tensor, axis - sum(i < axis for i in given[new])) for tensor, new in named
                           if axis not in given[new]))  # fmt: skip
    whole = broadcast_axes(operands, torch.broadcast_shapes(*(shape for shape, _ in operands)))
    trace.virtual(whole)
    return tuple(axis for i, axis in enumerate(whole) if i not in given["sumdim"])


@rule("linear")
def linear(trace: Trace, out: Tensor, source: Tensor, weight: Tensor, bias: Tensor | None = None):
    contract(trace, (source, -1), (weight, -1))
    summed = unify(trace.of(source)[-1], trace.of(weight)[-1])
    produced = trace.of(weight)[0]
    trace.virtual((*trace.of(source)[:-1], produced, summed))
    if bias is not None:
        produced = unify(produced, trace.of(bias)[0])
    return (*trace.of(source)[:-1], produced)


@rule("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "mkldnn_convolution")
def convolution(trace: Trace, out: Tensor, source: Tensor, weight: Tensor, bias: Tensor | None, stride, padding,
                dilation, transposed: bool = False, output_padding: Any = 0, groups: int = 1, *args):  # fmt: skip
    x, w = trace.of(source), trace.of(weight)
    for axis in (*x[2:], *w[2:]):
        freeze(axis, SPATIAL if axis in x[2:] else KERNEL)
    outer, inner = (w[1], w[0]) if transposed else (w[0], w[1])
    if groups < source.shape[1]:  # in a depthwise one, the units of the output are those of the input
        contract(trace, (source, 1), (weight, 0 if transposed else 1))
    if groups == 1:
        unify(x[1], inner)
        produced = outer
    else:
        group = atom(groups)
        if transposed:
            unify(x[1], inner)
            unify(inner, (*group, *atom(source.shape[1] // groups)))
            produced = (*group, *outer)
        else:
            unify(x[1], (*group, *inner))
            produced = unify(outer, (*group, *atom(weight.shape[0] // groups)))
    if bias is not None:
        produced = unify(produced, trace.of(bias)[0])
    return (x[0], produced, *(frozen(size, SPATIAL) for size in out.shape[2:]))


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math",
      "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
      "_scaled_dot_product_attention_math_for_mps",
      "scaled_dot_product_attention")  # fmt: skip
def attention(trace: Trace, out: Any, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs):
    q, k, v = (trace.of(tensor) for tensor in (query, key, value))
    lead = []
    for a, b, c in zip(q[:-2], k[:-2], v[:-2], strict=True):
        shared = unify(b, c)  # one key may serve several query heads
        lead.append(unify(a, (*shared, *atom(size_of(a) // size_of(shared)))))
    summed = unify(q[-1], k[-1])
    trace.mix(summed, by=PRODUCT)
    places = unify(k[-2], v[-2])
    mask = trace.given.get("attn_mask")
    mask = trace.given.get("attn_bias") if mask is None else mask
    if trace.given.get("is_causal"):
        freeze((*q[-2], *k[-2]), ORDER)
    first = out[0] if isinstance(out, tuple | list) else out
    scores = (*lead, q[-2], k[-2])
    trace.virtual((*scores, summed))
    trace.virtual(scores)
    trace.virtual((*lead, q[-2]))
    trace.virtual((*lead, q[-2], places, v[-1]))
    if mask is not None:
        start = len(scores) - mask.ndim
        for i, layout in enumerate(trace.of(mask)):
            if mask.shape[i] != 1:
                unify(layout, scores[start + i])
    axes = (*lead, q[-2], v[-1])
    if isinstance(out, Tensor):
        return axes
    rest = [tuple(frozen(s, "attention statistics") for s in t.shape) if isinstance(t, Tensor) else None for t in out]
    return [axes if t is first else r for t, r in zip(out, rest, strict=True)]
