"""Rules: how each ATen operation passes layouts on. What has no rule here freezes what it touches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .layout import Layout, Node, atom, child_of, concatenate, cut, factors, find, freeze, frozen, is_frozen, regroup
from .layout import size_of, unify, wild
from .trace import Axes, Trace, rule

SPATIAL = "a spatial axis"
KERNEL = "a convolution kernel's axis"


def broadcast(trace: Trace, tensors: Sequence[Tensor], shape: Sequence[int]) -> Axes:
    """Unify tensors as a pointwise operation does; an axis of length 1 or along which a tensor is constant gives way."""
    result: list[Layout] = [wild(size) for size in shape]
    for tensor in tensors:
        axes = trace.of(tensor)
        start = len(shape) - len(axes)
        for i, axis in enumerate(axes):
            if tensor.shape[i] != 1:
                result[start + i] = unify(result[start + i], axis)
    return tuple(result)


def _tensors(args: Any, kwargs: Any = None) -> list[Tensor]:
    return [v for v in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]


@rule("pointwise")
def pointwise(trace: Trace, out: Tensor, *args, **kwargs):
    tensors = _tensors(args, kwargs)
    for tensor in tensors:
        _lose_values(trace, tensor, "arithmetic with indices")
    if any(t.ndim > out.ndim for t in tensors):
        return NotImplemented
    axes = broadcast(trace, tensors, out.shape)
    if tensors and out is tensors[0]:  # in place: a view of something constant is constant no more
        _written(trace, out, axes)
    return axes


def _lose_values(trace: Trace, tensor: Tensor, why: str) -> None:
    if id(tensor) in trace.values:
        freeze(trace.values.pop(id(tensor)), why)


def _written(trace: Trace, out: Tensor, axes: Axes) -> None:
    base = out._base
    if base is None:
        return
    if any(node.kind == "wild" for axis in trace.of(base) for node in factors(axis)):
        why = "written in parts"
        for axis in axes:
            freeze(axis, why)
        trace.label(base, tuple(frozen(size, why) for size in base.shape))


@rule("copy_")
def copy_(trace: Trace, out: Tensor, target: Tensor, source: Tensor, *args):
    return pointwise(trace, out, target, source)


@rule("detach", "clone", "contiguous", "alias", "_to_copy", "lift_fresh", "lift_fresh_copy", "_conj", "dropout")
def same(trace: Trace, out: Tensor, source: Tensor, *args, **kwargs):
    if id(source) not in trace.axes or id(source) in trace.constants:
        trace.constants.add(id(out))
    if id(source) in trace.values:
        if out.is_floating_point():
            _lose_values(trace, source, "an index used as a number")
        else:
            trace.values[id(out)] = trace.values[id(source)]
    return trace.of(source)


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like",
      "full_like", "empty_like", "scalar_tensor", "fill", "zero")  # fmt: skip
def constant(trace: Trace, out: Tensor, *args, **kwargs):
    return tuple(wild(size) for size in out.shape)


@rule("arange", "linspace", "eye", "tril_indices", "triu_indices")
def counted(trace: Trace, out: Tensor, *args, **kwargs):
    return tuple(frozen(size, "a constant that counts") for size in out.shape)


@rule("tril", "triu")
def triangle(trace: Trace, out: Tensor, source: Tensor, *args):
    axes = trace.of(source)
    for axis in axes[-2:]:
        freeze(axis, "a triangle is cut out")
    return (*axes[:-2], *(frozen(size, "a triangle is cut out") for size in out.shape[-2:]))


# Views


@rule("t", "transpose")
def transpose(trace: Trace, out: Tensor, source: Tensor, first: int = 0, second: int = 1):
    axes = list(trace.of(source))
    if axes:
        first, second = first % len(axes), second % len(axes) if len(axes) > 1 else 0
        axes[first], axes[second] = axes[second], axes[first]
    _carry_values(trace, out, source)
    return tuple(axes)


@rule("permute")
def permute(trace: Trace, out: Tensor, source: Tensor, order: Sequence[int]):
    axes = trace.of(source)
    _carry_values(trace, out, source)
    return tuple(axes[i] for i in order)


def _carry_values(trace: Trace, out: Tensor, source: Tensor) -> None:
    if id(source) in trace.values:
        trace.values[id(out)] = trace.values[id(source)]


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "_reshape_copy")
def view(trace: Trace, out: Tensor, source: Tensor, *args):
    if out.dtype != source.dtype:
        return NotImplemented
    _carry_values(trace, out, source)
    axes = regroup(trace.of(source), out.shape)
    if axes is not None:
        return tuple(axes)
    why = f"a view {list(source.shape)} -> {list(out.shape)} that does not align"
    trace.freeze(source, why)
    return tuple(frozen(size, why) for size in out.shape)


@rule("expand")
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


@rule("unsqueeze")
def unsqueeze(trace: Trace, out: Tensor, source: Tensor, axis: int):
    _carry_values(trace, out, source)
    axes = list(trace.of(source))
    axes.insert(axis % out.ndim, ())
    return tuple(axes)


@rule("squeeze")
def squeeze(trace: Trace, out: Tensor, source: Tensor, axis: int | Sequence[int] | None = None):
    _carry_values(trace, out, source)
    chosen = range(source.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    gone = {i % source.ndim for i in chosen if source.shape[i % source.ndim] == 1} if source.ndim else set()
    return tuple(axis for i, axis in enumerate(trace.of(source)) if i not in gone)


def narrow(trace: Trace, source: Tensor, axis: int, start: int, stop: int) -> list[Layout]:
    """The axes of ``source`` with one of them cut to a block."""
    axes = list(trace.of(source))
    if (start, stop) == (0, source.shape[axis]):
        return axes
    why = "cut at fixed places"
    if all(is_frozen(node) and find(node).kind != "sum" for node in factors(axes[axis])):
        # Positions and batches: what holds for one block is asked of all.
        if not all(node.kind == "wild" for node in factors(axes[axis])):
            axes[axis] = frozen(stop - start, why)
        else:
            axes[axis] = wild(stop - start)
        return axes
    found = cut(axes[axis], start, stop)
    if found is None:
        freeze(axes[axis], why)
        axes[axis] = frozen(stop - start, why)
        return axes
    axes[axis], sum_, offset = found
    if sum_ is not None:
        own = len(factors([find(sum_)])) and 1
        axes = [
            tuple(child_of(node, sum_, offset) if (i != axis or j >= own) else node for j, node in enumerate(layout))
            for i, layout in enumerate(axes)
        ]
    return axes


@rule("slice")
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
    return tuple(narrow(trace, source, axis, start, start + out.shape[axis]))


@rule("select")
def select(trace: Trace, out: Tensor, source: Tensor, axis: int, index: int):
    _carry_values(trace, out, source)
    axis, index = axis % source.ndim, index % source.shape[axis]
    axes = narrow(trace, source, axis, index, index + 1)
    return tuple(layout for i, layout in enumerate(axes) if i != axis)


@rule("unbind")
def unbind(trace: Trace, out: Sequence[Tensor], source: Tensor, axis: int = 0):
    return [select(trace, piece, source, axis, i) for i, piece in enumerate(out)]


@rule("split", "split_with_sizes", "chunk", "tensor_split")
def split(trace: Trace, out: Sequence[Tensor], source: Tensor, sizes: Any, axis: int = 0):
    axis, start, result = axis % source.ndim, 0, []
    for piece in out:
        result.append(tuple(narrow(trace, source, axis, start, start + piece.shape[axis])))
        start += piece.shape[axis]
    return result


@rule("cat")
def cat(trace: Trace, out: Tensor, tensors: Sequence[Tensor], axis: int = 0):
    tensors = [tensor for tensor in tensors if tensor.numel() or tensor.ndim == out.ndim]
    axis %= out.ndim
    result = [wild(size) for size in out.shape]
    for tensor in tensors:
        for i, layout in enumerate(trace.of(tensor)):
            if i != axis:
                result[i] = unify(result[i], layout)
    pieces = [trace.of(tensor)[axis] or (Node(1),) for tensor in tensors if tensor.shape[axis]]
    result[axis] = concatenate(pieces) if len(pieces) > 1 else pieces[0]
    return tuple(result)


@rule("stack")
def stack(trace: Trace, out: Tensor, tensors: Sequence[Tensor], axis: int = 0):
    axes = list(broadcast(trace, tensors, tensors[0].shape))
    axes.insert(axis % out.ndim, frozen(len(tensors), "a stack"))
    return tuple(axes)


@rule("constant_pad_nd")
def pad(trace: Trace, out: Tensor, source: Tensor, amounts: Sequence[int], value: float = 0):
    axes = list(trace.of(source))
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        axis = source.ndim - 1 - i
        if min(before, after) < 0:
            return NotImplemented
        if before or after:
            pieces = [frozen(n, "padding") or (Node(1),) for n in (before,) if n]
            pieces += [axes[axis] or (Node(1),)]
            pieces += [frozen(n, "padding") or (Node(1),) for n in (after,) if n]
            if all(is_frozen(node) for node in factors(axes[axis])):
                axes[axis] = frozen(out.shape[axis], "padding")
            else:
                axes[axis] = concatenate(pieces)
    return tuple(axes)


@rule("roll", "flip", "cumsum", "cumprod", "logcumsumexp", "_fft_r2c", "_fft_c2r", "_fft_c2c", "unfold", "im2col")
def ordered(trace: Trace, out: Any, source: Tensor, *args, **kwargs):
    """The order of the axes that are named matters."""
    named = kwargs.get("dims") or kwargs.get("dim") or (args[-1] if args else None)
    return NotImplemented if named is None else _ordered(trace, out, source, named)


def _ordered(trace: Trace, out: Any, source: Tensor, named: Any):
    chosen = [named] if isinstance(named, int) else list(named)
    if not isinstance(out, Tensor) or out.ndim != source.ndim or not all(isinstance(c, int) for c in chosen):
        return NotImplemented
    axes = list(trace.of(source))
    for axis in chosen:
        freeze(axes[axis % source.ndim], "its order matters to the operation")
        axes[axis % source.ndim] = frozen(out.shape[axis % source.ndim], "its order matters to the operation")
    trace.virtual(tuple(layout for i, layout in enumerate(axes) if i not in {c % source.ndim for c in chosen}))
    return tuple(axes)


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
      "scaled_dot_product_attention")  # fmt: skip
def attention(trace: Trace, out: Any, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs):
    q, k, v = (trace.of(tensor) for tensor in (query, key, value))
    lead = []
    for a, b, c in zip(q[:-2], k[:-2], v[:-2], strict=True):
        shared = unify(b, c)  # a key serves several queries where the heads are fewer
        lead.append(unify(a, (*shared, *atom(size_of(a) // size_of(shared)))))
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    mask = next((a for a in (*args, kwargs.get("attn_mask")) if isinstance(a, Tensor)), None)
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
      "linalg_vector_norm", "argmax", "argmin", "count_nonzero", "nansum")  # fmt: skip
def reduce(trace: Trace, out: Any, source: Tensor, *args, **kwargs):
    first = out if isinstance(out, Tensor) else out[0]
    name_order = [a for a in args if not isinstance(a, bool)]
    named = kwargs.get("dim", next((a for a in name_order if isinstance(a, int | list | tuple)), None))
    if func_is_norm(args) and isinstance(args[0], int | float):
        named = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if isinstance(named, Tensor) or any(isinstance(a, Tensor) for a in args):
        return pointwise(trace, out, source, *args) if isinstance(out, Tensor) else NotImplemented
    axes = trace.of(source)
    if named is None or (isinstance(named, list | tuple) and not named):
        gone = set(range(source.ndim))
    else:
        gone = {d % source.ndim for d in ([named] if isinstance(named, int) else named)}
    if first.ndim == source.ndim and source.ndim:
        left = tuple(() if i in gone else layout for i, layout in enumerate(axes))
    else:
        left = tuple(layout for i, layout in enumerate(axes) if i not in gone)
    if len(left) != first.ndim:
        return NotImplemented
    for tensor in [out] if isinstance(out, Tensor) else out:
        if not tensor.is_floating_point() and tensor.dtype != torch.bool and source.is_floating_point():
            trace.values[id(tensor)] = tuple(node for i in sorted(gone) for node in axes[i])
    return left if isinstance(out, Tensor) else [left for _ in out]


def func_is_norm(args: Sequence[Any]) -> bool:
    """Whether the first argument of a reduction is the order of a norm."""
    return bool(args) and isinstance(args[0], float)


@rule("topk", "sort")
def top(trace: Trace, out: Sequence[Tensor], source: Tensor, *args, **kwargs):
    integers = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    is_topk = out[0].shape != source.shape or len(integers) == 2
    axis = kwargs.get("dim", (integers[1] if len(integers) > 1 else -1) if is_topk else (integers or [-1])[0])
    axes = list(trace.of(source))
    axis %= source.ndim
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


@rule("embedding")
def embedding(trace: Trace, out: Tensor, weight: Tensor, indices: Tensor, *args):
    return _looked_up(trace, indices, trace.of(weight), 0)


@rule("index_select")
def index_select(trace: Trace, out: Tensor, source: Tensor, axis: int, indices: Tensor):
    return _looked_up(trace, indices, trace.of(source), axis % source.ndim)


def _looked_up(trace: Trace, indices: Tensor, axes: Axes, axis: int) -> Axes:
    _tie_values(trace, indices, axes[axis])
    return (*axes[:axis], *trace.of(indices), *axes[axis + 1 :])


def _tie_values(trace: Trace, indices: Tensor, axis: Layout) -> None:
    known = trace.values.get(id(indices))
    if known is None:
        freeze(axis, "looked up by position")
    else:
        trace.lookups.append((tuple(node for layout in trace.of(indices) for node in layout), unify(known, axis)))


@rule("index")
def index(trace: Trace, out: Tensor, source: Tensor, indices: Sequence[Tensor | None]):
    used = [i for i, entry in enumerate(indices) if entry is not None]
    axes = trace.of(source)
    if len(used) == 1 and (fixed := _fixed_index(trace, indices[used[0]])) is not None:
        return tuple(narrow(trace, source, used[0], fixed % source.shape[used[0]], fixed % source.shape[used[0]] + 1))
    if any(indices[i].dtype == torch.bool for i in used):  # pyright: ignore[reportOptionalMemberAccess]
        return NotImplemented
    for i in used:
        _tie_values(trace, indices[i], axes[i])  # pyright: ignore[reportArgumentType]
    tensors = [indices[i] for i in used]
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))  # pyright: ignore[reportOptionalMemberAccess]
    looked = broadcast(trace, tensors, shape)  # pyright: ignore[reportArgumentType]
    rest = tuple(layout for i, layout in enumerate(axes) if i not in used)
    together = used == list(range(used[0], used[-1] + 1))
    at = used[0] if together else 0
    return (*rest[:at], *looked, *rest[at:])


def _fixed_index(trace: Trace, index: Any) -> int | None:
    """The one position that a constant such as ``[-2]`` names."""
    constant = id(index) in trace.constants or id(index) not in trace.axes
    return int(index) if constant and index.ndim == 1 and index.numel() == 1 and index.dtype != torch.bool else None


@rule("as_strided")
def as_strided(trace: Trace, out: Tensor, source: Tensor, *args, **kwargs):
    """Kernels restride their result to another memory format; a real change of shape has no rule."""
    axes = trace.of(source)
    return axes if out is source and [size_of(axis) for axis in axes] == list(out.shape) else NotImplemented


@rule("gather")
def gather(trace: Trace, out: Tensor, source: Tensor, axis: int, indices: Tensor, **kwargs):
    axis %= source.ndim
    known, axes = trace.values.get(id(indices)), list(trace.of(source))
    if known is not None:
        unify(known, axes[axis])
    else:
        freeze(axes[axis], "looked up by position")
    result = []
    for i, layout in enumerate(trace.of(indices)):
        whole = i != axis and indices.shape[i] == source.shape[i]
        if i != axis and not whole:
            freeze(axes[i], "looked up in parts")
        result.append(unify(layout, axes[i]) if whole else layout)
    return tuple(result)


@rule("scatter", "scatter_add")
def scatter(trace: Trace, out: Tensor, source: Tensor, axis: int, indices: Tensor, value: Any = None, *args, **kwargs):
    axis %= source.ndim
    known, axes = trace.values.get(id(indices)), list(trace.of(source))
    if known is None:
        freeze(axes[axis], "written by position")
        axes[axis] = frozen(source.shape[axis], "written by position")
    else:
        axes[axis] = unify(known, axes[axis])
    for tensor in (indices, value):
        if isinstance(tensor, Tensor):
            for i, layout in enumerate(trace.of(tensor)):
                if i != axis and tensor.shape[i] == source.shape[i]:
                    axes[i] = unify(axes[i], layout)
                elif i != axis:
                    freeze(axes[i], "written in parts")
                else:
                    freeze(layout, "written by position")
    return tuple(axes)


@rule("_local_scalar_dense", "is_nonzero", "equal")
def scalar(trace: Trace, out: Any, source: Tensor, *args):
    _lose_values(trace, source, "read as a number")
    return None


@rule("masked_fill")
def masked_fill(trace: Trace, out: Tensor, source: Tensor, mask: Tensor, value: Any):
    return pointwise(trace, out, source, mask)


def total(axes: Axes) -> int:
    """Number of elements."""
    return math.prod(size_of(axis) for axis in axes)
