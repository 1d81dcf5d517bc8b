"""Rules for norms, reductions, rankings and pooling along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..layout import unify
from ..nodes import atom, freeze, frozen
from ..trace import Trace, rule
from .base import SPATIAL
from .elementwise import pointwise


@rule("native_layer_norm", "layer_norm")
def layer_norm(trace: Trace, out: Any, source: Tensor, shape: Sequence[int], weight=None, bias=None, *args):
    axes, start = list(trace.of(source)), source.ndim - len(shape)
    trace.virtual(tuple(axes[:start]))
    trace.mix(*axes[start:])
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
    trace.mix(inner)
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
    trace.mix(axes[axis % source.ndim])
    return axes


@rule("sum", "mean", "amax", "amin", "max", "min", "var", "std", "any", "all", "prod", "logsumexp", "var_mean", "norm",
      "linalg_vector_norm", "argmax", "argmin", "count_nonzero", "nansum", "std_mean", "aminmax", "median", "nanmedian",
      "mode", "kthvalue")  # fmt: skip
def reduce(trace: Trace, out: Any, source: Tensor, *args, **kwargs):
    if "other" in trace.given:  # the elementwise maximum of two tensors
        return pointwise(trace, out, source, *args)
    first = out if isinstance(out, Tensor) else out[0]
    named = trace.given.get("dim")
    if isinstance(named, int):
        named = [named]
    gone = {d % source.ndim for d in named} if named and source.ndim else set(range(source.ndim))
    axes = trace.of(source)
    trace.mix(*(axes[i] for i in gone))
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
    trace.mix(ranked)
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
    left = list(axes[:lead])
    for i, axis in enumerate(axes[lead:]):
        if _pools_one(trace, i):
            left.append(axis)
        else:
            freeze(axis, SPATIAL)
            left.append(frozen(first.shape[lead + i], SPATIAL))
    trace.virtual(tuple(axis for i, axis in enumerate(left) if i < lead or _pools_one(trace, i - lead)))
    return tuple(left) if isinstance(out, Tensor) else [tuple(left), *([None] * (len(out) - 1))]


def _pools_one(trace: Trace, axis: int) -> bool:
    """Tell whether a window holds one place along an axis and goes over all of them."""
    if "kernel_size" not in trace.given:
        return False
    kernel = trace.given["kernel_size"]
    wanted = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    given = {name: trace.given.get(name) or kernel if name == "stride" else trace.given.get(name) for name in wanted}
    each = {name: [value] if isinstance(value, int) else value for name, value in given.items() if value is not None}
    return all(value[axis if len(value) > 1 else 0] == wanted[name] for name, value in each.items())


@rule("_is_all_true", "_is_any_true")
def whether(trace: Trace, out: Tensor, source: Tensor):
    """Return no axes, because the result is one number that does not depend on the order."""
    return ()
