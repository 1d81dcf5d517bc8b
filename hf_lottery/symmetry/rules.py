"""Rules: how each ATen operation passes layouts on. What has no rule here freezes what it touches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .layout import (
    Layout,
    Node,
    atom,
    child_of,
    concatenate,
    cut,
    factors,
    find,
    freeze,
    frozen,
    is_frozen,
    regroup,
    size_of,
    unify,
    wild,
)
from .trace import Axes, Trace, rule

ORDER = "its order matters to the operation"
SPATIAL = "a spatial axis"
KERNEL = "a convolution kernel's axis"


def broadcast(trace: Trace, tensors: Sequence[Tensor], shape: Sequence[int]) -> Axes:
    """Unify tensors as a pointwise operation does; what has length 1 or is constant along an axis gives way."""
    return _broadcast([(tensor.shape, trace.of(tensor)) for tensor in tensors], shape)


def _broadcast(labelled: Sequence[tuple[Sequence[int], Axes]], shape: Sequence[int]) -> Axes:
    result: list[Layout] = [wild(size) for size in shape]
    for sizes, axes in labelled:
        start = len(shape) - len(axes)
        for i, axis in enumerate(axes):
            if sizes[i] != 1:
                result[start + i] = unify(result[start + i], axis)
    return tuple(result)


def _tensors(args: Any, kwargs: Any = None) -> list[Tensor]:
    return [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]


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
    tensors = _tensors(args, kwargs)
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


# Views


@rule("t", "transpose", positions=True)
def transpose(trace: Trace, out: Tensor, source: Tensor, first: int = 0, second: int = 1):
    axes = list(trace.of(source))
    if axes:
        first, second = first % len(axes), second % len(axes) if len(axes) > 1 else 0
        axes[first], axes[second] = axes[second], axes[first]
    _carry_values(trace, out, source)
    return tuple(axes)


@rule("permute", positions=True)
def permute(trace: Trace, out: Tensor, source: Tensor, order: Sequence[int]):
    axes = trace.of(source)
    _carry_values(trace, out, source)
    return tuple(axes[i] for i in order)


def _carry_values(trace: Trace, out: Tensor, source: Tensor) -> None:
    if id(source) in trace.values:
        trace.values[id(out)] = trace.values[id(source)]


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "_reshape_copy", positions=True)
def view(trace: Trace, out: Tensor, source: Tensor, *args):
    if out.dtype != source.dtype:
        return NotImplemented
    _carry_values(trace, out, source)
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
    """The shortest runs of axes that hold the same elements before and after a view."""
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
    """The last axes, as far as they agree: what an expert without tokens does with its units counts all the same."""
    axes = [frozen(size, "empty") for size in out.shape]
    for i in range(1, min(out.ndim, source.ndim) + 1):
        if out.shape[-i] != source.shape[-i] or not out.shape[-i]:
            break
        axes[-i] = trace.of(source)[-i]
    return tuple(axes)


@rule("expand", positions=True)
def expand(trace: Trace, out: Tensor, source: Tensor, *args, **kwargs):
    _carry_values(trace, out, source)
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
    _carry_values(trace, out, source)
    axes = list(trace.of(source))
    axes.insert(axis % out.ndim, ())
    return tuple(axes)


@rule("squeeze", positions=True)
def squeeze(trace: Trace, out: Tensor, source: Tensor, axis: int | Sequence[int] | None = None):
    _carry_values(trace, out, source)
    chosen = range(source.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    gone = {i % source.ndim for i in chosen if source.shape[i % source.ndim] == 1} if source.ndim else set()
    return tuple(axis for i, axis in enumerate(trace.of(source)) if i not in gone)


def narrow(trace: Trace, axes: Sequence[Layout], axis: int, start: int, stop: int) -> list[Layout]:
    """The axes with one of them cut to a block."""
    axes = list(axes)
    if (start, stop) == (0, size_of(axes[axis])):
        return axes
    why = "cut at fixed places"
    if stop <= start:
        axes[axis] = frozen(0, why)
        return axes
    if all(is_frozen(node) and find(node).kind != "sum" for node in factors(axes[axis])):
        # Positions and batches: what holds for one block is asked of all.
        constant = all(node.kind == "wild" for node in factors(axes[axis]))
        axes[axis] = wild(stop - start) if constant else frozen(stop - start, why)
        return axes
    found = cut(axes[axis], start, stop)
    if found is None:
        freeze(axes[axis], why)
        axes[axis] = frozen(stop - start, why)
        return axes
    axes[axis], sum_, offset = found
    if sum_ is not None:
        # The block itself comes first on its axis; all else is told apart by block.
        axes = [
            tuple(node if (i, j) == (axis, 0) else child_of(node, sum_, offset) for j, node in enumerate(layout))
            for i, layout in enumerate(axes)
        ]
    return axes


@rule("slice", positions=True)
def slice_(trace: Trace, out: Tensor, source: Tensor, axis: int = 0, start=None, end=None, step: int = 1):
    _carry_values(trace, out, source)
    axis %= source.ndim
    if step != 1:
        axes = list(trace.of(source))
        if not all(node.kind == "wild" for node in factors(axes[axis])):
            freeze(axes[axis], "every other position is taken")
            axes[axis] = frozen(out.shape[axis], "every other position is taken")
        else:
            axes[axis] = wild(out.shape[axis])
        return tuple(axes)
    start = 0 if start is None else start + source.shape[axis] if start < 0 else start
    start = max(min(start, source.shape[axis]), 0)
    return tuple(narrow(trace, trace.of(source), axis, start, start + out.shape[axis]))


@rule("select", positions=True)
def select(trace: Trace, out: Tensor, source: Tensor, axis: int, index: int):
    _carry_values(trace, out, source)
    axis, index = axis % source.ndim, index % source.shape[axis]
    axes = narrow(trace, trace.of(source), axis, index, index + 1)
    return tuple(layout for i, layout in enumerate(axes) if i != axis)


@rule("unbind", positions=True)
def unbind(trace: Trace, out: Sequence[Tensor], source: Tensor, axis: int = 0):
    return [select(trace, piece, source, axis, i) for i, piece in enumerate(out)]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk",
      positions=True)  # fmt: skip
def split(trace: Trace, out: Sequence[Tensor], source: Tensor, sizes: Any, axis: int = 0):
    axis, start, result = axis % source.ndim, 0, []
    for piece in out:
        _carry_values(trace, piece, source)
        result.append(tuple(narrow(trace, trace.of(source), axis, start, start + piece.shape[axis])))
        start += piece.shape[axis]
    return result


@rule("cat", positions=True)
def cat(trace: Trace, out: Tensor, tensors: Sequence[Tensor], axis: int = 0):
    axis %= out.ndim
    result = [wild(size) for size in out.shape]
    pieces = []
    for tensor in tensors:
        if tensor.ndim != out.ndim:
            continue  # an empty list of numbers joins anything
        for i, layout in enumerate(trace.of(tensor)):
            if i != axis:
                result[i] = unify(result[i], layout)
        if tensor.shape[axis]:
            pieces.append(trace.of(tensor)[axis])
    result[axis] = pieces[0] if len(pieces) == 1 else concatenate(pieces)
    _join_values(trace, out, tensors)
    return tuple(result)


def _join_values(trace: Trace, out: Tensor, tensors: Sequence[Tensor]) -> None:
    """Positions along one axis stay so together; mixed with other numbers they are lost."""
    known = [trace.values.get(id(tensor)) for tensor in tensors]
    if all(axis is not None for axis in known):
        trace.values[id(out)] = functools.reduce(unify, known)  # pyright: ignore[reportArgumentType]
    for tensor in tensors if id(out) not in trace.values else ():
        trace.lose_positions(tensor, "positions among other numbers")


@rule("stack", positions=True)
def stack(trace: Trace, out: Tensor, tensors: Sequence[Tensor], axis: int = 0):
    axes = list(broadcast(trace, tensors, tensors[0].shape))
    axes.insert(axis % out.ndim, frozen(len(tensors), "a stack"))
    _join_values(trace, out, tensors)
    return tuple(axes)


@rule("constant_pad_nd")
def pad(trace: Trace, out: Tensor, source: Tensor, amounts: Sequence[int], value: float = 0):
    axes = list(trace.of(source))
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        axis = source.ndim - 1 - i
        if not (before or after):
            continue
        if all(is_frozen(node) for node in factors(axes[axis])):
            axes[axis] = frozen(out.shape[axis], "padding")
            continue
        # What is cut off is padded by less than nothing.
        kept = max(-before, 0), source.shape[axis] - max(-after, 0)
        if kept != (0, source.shape[axis]):
            axes = narrow(trace, axes, axis, *kept)
        ends = [wild(n) or (Node(1),) if n > 0 else None for n in (before, after)]
        pieces = [piece for piece in (ends[0], axes[axis], ends[1]) if piece is not None]
        axes[axis] = concatenate(pieces) if len(pieces) > 1 else pieces[0]
    return tuple(axes)


@rule("roll", "flip", "cumsum", "cumprod", "logcumsumexp", "_fft_r2c", "_fft_c2r", "_fft_c2c")
def ordered(trace: Trace, out: Any, source: Tensor, *args, **kwargs):
    """The order of the axes that are named matters."""
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
    """Channels are a product of channels and places (or of groups and channels), which change their order."""
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


@rule("glu")
def glu(trace: Trace, out: Tensor, source: Tensor, axis: int = -1):
    axis %= source.ndim
    half = source.shape[axis] // 2
    first, second = (narrow(trace, trace.of(source), axis, at, at + half) for at in (0, half))
    return tuple(unify(a, b) for a, b in zip(first, second, strict=True))


@rule("nonzero", "bincount", "histc", "unique", "_unique2", "unique_consecutive", "unique_dim", "masked_select")
def counted_up(trace: Trace, out: Any, source: Tensor, *args, **kwargs):
    """The result depends on positions or values in a way that no axis survives."""
    for tensor in _tensors((source, args), kwargs):
        trace.freeze(tensor, "its positions are read")
    results = [out] if isinstance(out, Tensor) else list(out)
    made = [tuple(frozen(size, "positions that were read") for size in tensor.shape) for tensor in results]
    return made[0] if isinstance(out, Tensor) else made


# Contractions


@rule("mm", "bmm")
def matmul(trace: Trace, out: Tensor, first: Tensor, second: Tensor, *args):
    a, b = trace.of(first), trace.of(second)
    unify(a[-1], b[-2])
    if out.ndim == 3:
        return (unify(a[0], b[0]), a[1], b[2])
    return (a[0], b[1])


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


@rule("mv", "dot")
def contract_vector(trace: Trace, out: Tensor, first: Tensor, second: Tensor):
    unify(trace.of(first)[-1], trace.of(second)[0])
    return trace.of(first)[:-1]


@rule("addmv", "addr", "outer", "ger")
def outer(trace: Trace, out: Tensor, *tensors: Tensor, **kwargs):
    """Products of vectors."""
    axes = tuple(layout for tensor in tensors[-2:] for layout in trace.of(tensor))
    if trace.operation == "addmv":
        axes = contract_vector(trace, out, *tensors[-2:])
    trace.virtual(axes)
    return tuple(unify(a, b) for a, b in zip(axes, trace.of(tensors[0]), strict=True)) if len(tensors) == 3 else axes


@rule("linalg_solve_triangular", "triangular_solve", "linalg_solve", "_linalg_solve_ex")
def solve_triangular(trace: Trace, out: Any, first: Tensor, second: Tensor, **kwargs):
    """``first @ out = second``: the equations are in a fixed order."""
    a, b = trace.of(first), trace.of(second)
    if trace.operation != "linalg_solve_triangular" or not trace.given.get("left", True):
        return NotImplemented
    for axis in (*a[-2:], b[-2]):
        freeze(axis, ORDER)
    lead = _broadcast([(first.shape[:-2], a[:-2]), (second.shape[:-2], b[:-2])], out.shape[:-2])
    return (*lead, frozen(out.shape[-2], ORDER), b[-1])


@rule("_cdist_forward", "_euclidean_dist")
def distances(trace: Trace, out: Tensor, first: Tensor, second: Tensor, *args):
    a, b = trace.of(first), trace.of(second)
    unify(a[-1], b[-1])
    lead = _broadcast([(first.shape[:-2], a[:-2]), (second.shape[:-2], b[:-2])], out.shape[:-2])
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


@rule("linear")
def linear(trace: Trace, out: Tensor, source: Tensor, weight: Tensor, bias: Tensor | None = None):
    unify(trace.of(source)[-1], trace.of(weight)[-1])
    produced = trace.of(weight)[0]
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
        shared = unify(b, c)  # a key serves several queries where the heads are fewer
        lead.append(unify(a, (*shared, *atom(size_of(a) // size_of(shared)))))
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    mask = trace.given.get("attn_mask")
    mask = trace.given.get("attn_bias") if mask is None else mask
    if trace.given.get("is_causal"):
        freeze((*q[-2], *k[-2]), ORDER)
    first = out[0] if isinstance(out, tuple | list) else out
    scores = (*lead, q[-2], k[-2])
    trace.virtual(scores)
    trace.virtual((*lead, q[-2]))
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


# Norms, reductions, orders along an axis


@rule("native_layer_norm", "layer_norm")
def layer_norm(trace: Trace, out: Any, source: Tensor, shape: Sequence[int], weight=None, bias=None, *args):
    axes, start = list(trace.of(source)), source.ndim - len(shape)
    trace.virtual(tuple(axes[:start]))
    for parameter in (weight, bias):
        if parameter is not None:
            for i, layout in enumerate(trace.of(parameter)):
                axes[start + i] = unify(axes[start + i], layout)
    if isinstance(out, Tensor):
        return tuple(axes)
    left = tuple(axes[:start])
    return [tuple(axes), *([(*left, *[()] * len(shape))] * 2)]


@rule("_fused_rms_norm", "rms_norm")
def rms_norm(trace: Trace, out: Any, source: Tensor, shape: Sequence[int], weight=None, *args):
    axes = layer_norm(trace, source, source, shape, weight)
    if isinstance(out, Tensor):
        return axes
    return [axes, (*axes[: source.ndim - len(shape)], *[()] * len(shape))]


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "cudnn_batch_norm",
      "batch_norm")  # fmt: skip
def batch_norm(trace: Trace, out: Any, source: Tensor, *args, **kwargs):
    axes = list(trace.of(source))
    for tensor in args[:4]:
        if isinstance(tensor, Tensor):
            axes[1] = unify(axes[1], trace.of(tensor)[0])
    if isinstance(out, Tensor):
        return tuple(axes)
    return [tuple(axes), *(tuple(atom(s) for s in t.shape) for t in out[1:])]


@rule("native_group_norm", "group_norm")
def group_norm(trace: Trace, out: Any, source: Tensor, weight, bias, n: int, c: int, hw: int, groups: int, eps: float):
    axes = list(trace.of(source))
    group, inner = atom(groups), atom(c // groups)
    axes[1] = unify(axes[1], (*group, *inner))
    trace.virtual((axes[0], group))
    for parameter in (weight, bias):
        if parameter is not None:
            axes[1] = unify(axes[1], trace.of(parameter)[0])
    if isinstance(out, Tensor):
        return tuple(axes)
    return [tuple(axes), (axes[0], group), (axes[0], group)]


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(trace: Trace, out: Tensor, source: Tensor, axis: int, *args):
    axes = trace.of(source)
    trace.virtual(tuple(layout for i, layout in enumerate(axes) if i != axis % source.ndim))
    return axes


@rule("sum", "mean", "amax", "amin", "max", "min", "var", "std", "any", "all", "prod", "logsumexp", "var_mean", "norm",
      "linalg_vector_norm", "argmax", "argmin", "count_nonzero", "nansum", "std_mean", "aminmax", "median", "nanmedian",
      "mode", "kthvalue")  # fmt: skip
def reduce(trace: Trace, out: Any, source: Tensor, *args, **kwargs):
    if "other" in trace.given:  # the greater of two
        return pointwise(trace, out, source, *args)
    first = out if isinstance(out, Tensor) else out[0]
    named = trace.given.get("dim")
    if isinstance(named, int):
        named = [named]
    gone = {d % source.ndim for d in named} if named and source.ndim else set(range(source.ndim))
    axes = trace.of(source)
    if trace.given.get("keepdim"):
        left = tuple(() if i in gone else layout for i, layout in enumerate(axes))
    else:
        left = tuple(layout for i, layout in enumerate(axes) if i not in gone)
    if len(left) != first.ndim:
        return NotImplemented
    finds_position = trace.operation.startswith("arg") or not isinstance(out, Tensor)
    if finds_position and trace.operation not in ("var_mean", "std_mean", "aminmax"):
        where = out if isinstance(out, Tensor) else out[1]
        trace.values[id(where)] = tuple(node for i in sorted(gone) for node in axes[i])
    return left if isinstance(out, Tensor) else [left for _ in out]


@rule("topk", "sort")
def top(trace: Trace, out: Sequence[Tensor], source: Tensor, *args, **kwargs):
    axes = list(trace.of(source))
    axis = trace.given["dim"] % max(source.ndim, 1)
    ranked = axes[axis]
    trace.virtual(tuple(layout for i, layout in enumerate(axes) if i != axis))
    axes[axis] = frozen(out[0].shape[axis], "ranks")
    trace.values[id(out[1])] = ranked
    return [tuple(axes), tuple(axes)]


@rule("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "upsample_bilinear2d",
      "upsample_nearest2d", "upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "avg_pool1d",
      "max_pool2d", "reflection_pad2d", "replication_pad2d", "reflection_pad1d", "mean_pool", "avg_pool3d",
      "_adaptive_avg_pool3d", "max_pool3d_with_indices", "upsample_linear1d", "upsample_nearest1d",
      "adaptive_max_pool2d")  # fmt: skip
def pool(trace: Trace, out: Any, source: Tensor, *args, **kwargs):
    first = out if isinstance(out, Tensor) else out[0]
    lead = 2 if source.ndim > 2 else 1
    axes = trace.of(source)
    for axis in axes[lead:]:
        freeze(axis, SPATIAL)
    left = (*axes[:lead], *(frozen(size, SPATIAL) for size in first.shape[lead:]))
    return left if isinstance(out, Tensor) else [left for _ in out]


# Indexing


@rule("embedding", positions=True)
def embedding(trace: Trace, out: Tensor, weight: Tensor, indices: Tensor, *args):
    return _looked_up(trace, indices, trace.of(weight), 0)


@rule("index_select", positions=True)
def index_select(trace: Trace, out: Tensor, source: Tensor, axis: int, indices: Tensor):
    return _looked_up(trace, indices, trace.of(source), axis % source.ndim)


def _looked_up(trace: Trace, indices: Tensor, axes: Axes, axis: int) -> Axes:
    """What is looked up along one axis."""
    _tie_values(trace, indices, axes[axis])
    return (*axes[:axis], *trace.of(indices), *axes[axis + 1 :])


def _tie_values(trace: Trace, indices: Tensor, axis: Layout) -> None:
    known = trace.values.get(id(indices))
    if known is None:
        freeze(axis, "looked up by position")
    else:
        trace.lookups.append((tuple(node for layout in trace.of(indices) for node in layout), unify(known, axis)))


@rule("index", "_unsafe_index", positions=True)
def index(trace: Trace, out: Tensor, source: Tensor, indices: Sequence[Tensor | None]):
    if id(source) in trace.values:
        trace.lose_positions(source, "positions looked up")
    entries = [(i, entry) for i, entry in enumerate(indices) if entry is not None]
    axes = trace.of(source)
    if any(entry.dtype in (torch.bool, torch.uint8) for _, entry in entries):
        return _masked(trace, out, axes, entries)
    if len(entries) == 1 and (fixed := _fixed_index(trace, entries[0][1])) is not None:
        at = fixed % source.shape[entries[0][0]]
        return tuple(narrow(trace, axes, entries[0][0], at, at + 1))
    for i, entry in entries:
        _tie_values(trace, entry, axes[i])
    return _around(trace, axes, entries)


def _around(trace: Trace, axes: Axes, entries: Sequence[tuple[int, Tensor]]) -> Axes:
    """The axes of what is looked up: those of the positions in place of the axes they are positions of."""
    used = [i for i, _ in entries]
    tensors = [entry for _, entry in entries]
    looked = broadcast(trace, tensors, torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    rest = tuple(layout for i, layout in enumerate(axes) if i not in used)
    together = used == list(range(used[0], used[-1] + 1))
    at = used[0] if together else 0
    return (*rest[:at], *looked, *rest[at:])


def _masked(trace: Trace, out: Tensor, axes: Axes, entries: Sequence[tuple[int, Tensor]]) -> Any:
    """What a boolean mask of some neighbouring axes picks."""
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
    # An axis that only got single values, or the rest of a constant, is constant still.
    return tuple(axes)


@rule("masked_scatter")
def masked_scatter(trace: Trace, out: Tensor, source: Tensor, mask: Tensor, values: Tensor):
    """Values are read in order; rows that are written as a whole keep their axis."""
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
    """The one position that a constant such as ``[-2]`` names."""
    constant = id(index) in trace.constants or id(index) not in trace.axes
    return int(index) if constant and index.ndim == 1 and index.numel() == 1 and index.dtype != torch.bool else None


@rule("as_strided")
def as_strided(trace: Trace, out: Tensor, source: Tensor, *args, **kwargs):
    """Kernels restride their result to another memory format; a real change of shape has no rule."""
    axes = trace.of(source)
    return axes if out is source and [size_of(axis) for axis in axes] == list(out.shape) else NotImplemented


@rule("gather", positions=True)
def gather(trace: Trace, out: Tensor, source: Tensor, axis: int, indices: Tensor, **kwargs):
    axis %= source.ndim
    axes = list(trace.of(source))
    _tie_values(trace, indices, axes[axis])
    _carry_values(trace, out, source)
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


@rule("_is_all_true", "_is_any_true")
def whether(trace: Trace, out: Tensor, source: Tensor):
    """One number for a whole tensor, the same in any order."""
    return ()


@rule("_local_scalar_dense", "is_nonzero", "equal")
def scalar(trace: Trace, out: Any, *tensors: Tensor):
    for tensor in tensors:
        trace.freeze(tensor, "read as a number")


@rule("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_size", "sym_numel", "sym_stride")
def nothing(trace: Trace, out: Any, *args, **kwargs):
    """Makes no tensor; reads no more than whether something holds."""
