"""Rules: every family of operations, and random programs of them, against the operations themselves.

The oracle is the same everywhere: ``probe`` permutes the inputs and compares the outputs.
"""

import random

import pytest
import torch
from probes import probe, r
from torch.nn import functional as F

KINDS = ["view", "transpose", "slice", "cat", "add", "flatten", "step", "stack", "product"]


def _view(choose, value):
    axis = choose.randrange(value.ndim)
    divisors = [d for d in (2, 3, 4) if value.shape[axis] % d == 0 and value.shape[axis] > d]
    return value.unflatten(axis, (choose.choice(divisors), -1)) if divisors and value.ndim < 5 else value


def _sliced(choose, kind, value):
    axis = choose.randrange(value.ndim)
    start = choose.randrange(value.shape[axis])
    if kind == "slice":
        return value.narrow(axis, start, choose.randint(1, value.shape[axis] - start))
    return value.transpose(0, axis)[start :: choose.choice([2, 3])].transpose(0, axis)


def _next(choose, values):
    """Return a random function of the values so far."""
    value, kind = choose.choice(values), choose.choice(KINDS)
    alike = [v for v in values if v.shape == value.shape]
    if kind == "view":
        return _view(choose, value)
    if kind == "flatten" and value.ndim > 2:
        at = choose.randrange(value.ndim - 1)
        return value.flatten(at, at + 1)
    if kind == "transpose":
        return value.transpose(0, choose.randrange(value.ndim))
    if kind in ("slice", "step"):
        return _sliced(choose, kind, value)
    if kind == "cat":
        return torch.cat([value, choose.choice([value, value.exp()])], choose.randrange(value.ndim))
    if kind == "stack" and value.ndim < 5:
        return torch.stack([value, choose.choice(alike)], -1)
    if kind == "product" and value.ndim == 2:
        return value.T @ value
    return value + choose.choice(alike)


@pytest.mark.parametrize("seed", range(60))
def test_views_cuts_and_joins_agree_with_index_arrays(seed):
    """Random programs of views, transpositions, slices, concatenations, stacks, products and sums."""

    def function(x, y):
        choose, values = random.Random(seed), [x, y]
        for _ in range(6):
            values.append(_next(choose, values))
        return values[2:]

    probe(function, r(12, 8), r(12, 8))


FAMILIES = {
    "pointwise": (lambda x, y, b: (x * y + b).relu(), [r(3, 4, 5), r(3, 1, 5), r(5)], 3),
    "where": (lambda x, y: torch.where(x > 0, x, y), [r(3, 4), r(3, 4)], 2),
    "masked fill": (lambda x, y: x.masked_fill(y > 0, -1.0), [r(3, 4), r(4)], 2),
    "matmul": (lambda x, w: x @ w, [r(3, 4), r(4, 5)], 3),
    "batched matmul": (lambda x, w: x @ w, [r(2, 3, 4), r(2, 4, 5)], 4),
    "linear": (F.linear, [r(3, 4), r(5, 4), r(5)], 3),
    "einsum": (lambda x, w: torch.einsum("bnc,chd->bhnd", x, w), [r(2, 3, 4), r(4, 5, 6)], 5),
    "outer": (torch.outer, [r(3), r(4)], 2),
    "matrix vector": (torch.mv, [r(3, 4), r(4)], 2),
    "convolution": (F.conv2d, [r(2, 3, 6, 6), r(4, 3, 3, 3), r(4)], 3),
    "grouped convolution": (lambda x, w: F.conv2d(x, w, groups=2), [r(2, 6, 5, 5), r(4, 3, 3, 3)], 4),
    "depthwise convolution": (lambda x, w: F.conv2d(x, w, groups=6), [r(2, 6, 5, 5), r(6, 1, 3, 3)], 2),
    "transposed convolution": (F.conv_transpose2d, [r(2, 3, 4, 4), r(3, 5, 2, 2), r(5)], 3),
    "grouped transposed": (lambda x, w: F.conv_transpose1d(x, w, groups=2), [r(2, 6, 4), r(6, 5, 2)], 4),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (4,), w, b), [r(3, 4), r(4), r(4)], 2),
    "group norm": (lambda x, w: F.group_norm(x, 2, w), [r(2, 6, 4), r(6)], 4),
    "batch norm": (lambda x, m, w: F.batch_norm(x, m, w * 0 + 1, w), [r(2, 6, 4), r(6), r(6)], 3),
    "softmax": (lambda x: x.softmax(-1), [r(3, 4)], 2),
    "reductions": (lambda x: [x.sum(0), x.mean((0, 2)), x.amax(-1), x.var(1), x.norm(dim=1)], [r(3, 4, 5)], 3),
    "vector norm": (lambda x: torch.linalg.vector_norm(x, 2, dim=1, keepdim=True), [r(3, 4)], 2),
    "logsumexp": (lambda x: x.logsumexp(1), [r(3, 4)], 2),
    "sort": (lambda x: x.sort(1)[0], [r(3, 4)], 2),
    "top": (lambda x: x.topk(2, dim=0)[0], [r(5, 4)], 2),
    "gather at the maximum": (lambda x, w: w[x.argmax(-1)], [r(3, 4), r(4, 5)], 3),
    "gather and sum": (lambda x, w: w[x.argmax(-1)].sum(0), [r(3, 4), r(4, 5)], 3),
    "gather by rank": (lambda x, w: x.softmax(-1).gather(-1, w.topk(2, -1)[1]), [r(3, 4), r(3, 4)], 2),
    "one of many": (lambda x, w: F.one_hot(x.argmax(-1), 4).double() @ w, [r(3, 4), r(4, 5)], 3),
    "scatter by rank": (
        lambda x: torch.zeros_like(x).scatter(1, (top := x.topk(2, 1))[1], top[0]),
        [r(3, 4)],
        2,
    ),
    "dot": (torch.dot, [r(4), r(4)], 1),
    "vdot": (torch.vdot, [r(4), r(4)], 1),
    "bilinear": (F.bilinear, [r(3, 4), r(3, 5), r(6, 4, 5), r(6)], 4),
    "every other": (lambda x: x[:, ::2] * x[:, 1::2], [r(3, 8)], 2),
    "one of three": (lambda x: [x[:, ::3], x[:, 1::3].exp(), x[:, 2::3]], [r(3, 12)], 6),
    "every other of some": (lambda x: x[:, 2:6:2], [r(3, 8)], 5),
    "step that does not divide": (lambda x: x[:, ::2], [r(3, 7)], 1),
    "overlapping windows": (lambda x: x.as_strided((3, 3, 4, 5), (40, 10, 5, 1)), [r(3, 8, 5)], 2),
    "windows out of line": (lambda x: x.as_strided((3, 3, 4, 5), (40, 11, 5, 1)), [r(3, 9, 5)], 0),
    "overlapping halves": (
        lambda x: x.transpose(0, 1).unflatten(1, (2, 4)).as_strided((3, 3, 4, 5), (5, 30, 15, 1)),
        [r(8, 3, 5)],
        2,
    ),
    "windows of columns": (lambda x: x.as_strided((3, 2, 6), (8, 2, 1)), [r(3, 8)], 1),
    "pooling of one axis": (
        lambda x: [F.avg_pool2d(x, (2, 1)), F.max_pool2d(x.exp(), (2, 1)), F.avg_pool1d(x.flatten(0, 1), 1)],
        [r(2, 3, 4, 5)],
        3,
    ),
    "pooling with a stride": (lambda x: F.max_pool2d(x, 1, stride=(1, 2)), [r(2, 3, 4, 6)], 3),
    "unbind": (lambda x: list(x.view(3, 3, 4).unbind(1)), [r(3, 12)], 6),
    "glu": (lambda x: F.glu(x, 1), [r(3, 8)], 2),
    "cumulated": (lambda x: x.cumsum(1), [r(3, 4)], 1),
    "flip and roll": (lambda x: [x.flip(0), x.roll(1, 0)], [r(3, 4)], 1),
    "triangle": (lambda x: x.tril(), [r(5, 3, 3)], 1),
    "fourier": (lambda x: torch.fft.rfft(x, dim=1).abs(), [r(3, 8)], 1),
    "complex": (lambda x: torch.view_as_real(torch.view_as_complex(x) * 2), [r(3, 4, 2)], 2),
    "padding": (lambda x: F.pad(x, (1, 2)), [r(3, 4)], 2),
    "cropping": (lambda x: F.pad(x, (-1, -1)), [r(3, 4)], 3),
    "windows": (lambda x: x.unfold(1, 3, 1), [r(3, 6)], 1),
    "columns": (lambda x: F.fold(F.unfold(x, 2), (4, 4), 2), [r(2, 3, 4, 4)], 2),
    "pixel shuffle": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2).exp(), 2), [r(2, 12, 2, 2)], 2),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 3), [r(2, 12, 2, 2)], 5),
    "pooling": (lambda x: [F.max_pool2d(x, 2), F.adaptive_avg_pool2d(x, 1)], [r(2, 3, 4, 4)], 2),
    "upsampling": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), [r(2, 3, 4, 4)], 2),
    "grid sample": (lambda x, g: F.grid_sample(x, g, align_corners=False), [r(2, 3, 4, 4), r(2, 5, 6, 2)], 4),
    "distances": (torch.cdist, [r(3, 4), r(5, 4)], 3),
    "repeated": (lambda x: x.repeat(2, 3).view(2, 3, 3, 4), [r(3, 4)], 2),
    "expanded": (lambda x, y: x[:, None].expand(3, 2, 4) * y, [r(3, 4), r(3, 2, 4)], 3),
    "stacked": (lambda x, y: torch.stack([x, y]).sum(0), [r(3, 4), r(3, 4)], 2),
    "picked by a mask": (lambda x, y: x[y > 0], [r(5, 4), torch.arange(5.0).double() - 2], 1),
    "put by position": (
        lambda x, y: torch.zeros(5, 4, dtype=x.dtype).index_put((torch.tensor([0, 3]),), x) * y,
        [r(2, 4), r(5, 4)],
        1,
    ),
    "added by position": (
        lambda x: torch.zeros(5, 4, dtype=x.dtype).index_add(0, torch.tensor([0, 3, 0]), x),
        [r(3, 4)],
        1,
    ),
    "put by a mask": (
        lambda x, y: x.masked_scatter((torch.arange(5) % 2 == 0)[:, None].expand(5, 4), y),
        [r(5, 4), r(3, 4)],
        1,
    ),
    "weight norm": (
        lambda v, g: torch._weight_norm_interface(v, g, 0)[0],
        [r(3, 4), r(3, 1)],
        2,
    ),
    "solve": (lambda a, b: torch.linalg.solve_triangular(a + 4 * torch.eye(3), b, upper=True), [r(2, 3, 3), r(2, 3, 4)],
              2),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_rule(name):
    function, inputs, free = FAMILIES[name]
    probe(function, *inputs, free=free)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("width", [5, 8])  # one kernel or several operations
def test_attention(causal, shared, width):
    """Keys that serve several queries: heads over repetitions."""

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared > 1)

    q, k, v = r(2, 4, 3, 8), r(2, 4 // shared, 3, 8), r(2, 4 // shared, 3, width)
    probe(attend, q, k, v)


def test_softmax_keeps_what_it_mixes_together():
    """Rows may be sorted each in its own way, but no other axis may differ per index of the axis that is mixed."""
    spec = probe(lambda x, w: (x[:, None] * w).softmax(-1), r(3, 4), r(3, 2, 4))
    assert spec.groups["in0[1]"].parents and not any("in0[1]" in group.parents for group in spec.groups.values())


# Memory that is written in parts: what looked constant is not.


WRITES = {
    "rows": lambda x: [out := torch.zeros_like(x), out.__setitem__((slice(None), 0), x[:, 1])][:1],
    "one half": lambda x: [out := torch.zeros(3, 8, dtype=x.dtype), out.__setitem__((..., slice(0, 4)), x)][:1],
    "two halves": lambda x: [
        out := torch.empty(3, 8, dtype=x.dtype),
        out.__setitem__((..., slice(0, 4)), x),
        out.__setitem__((..., slice(4, 8)), x.exp()),
    ][:1],
    "a number": lambda x: [out := torch.zeros_like(x), out.__setitem__((..., slice(0, 2)), 1.0), out * x][2:],
    "another view": lambda x: [out := torch.zeros(12, dtype=x.dtype), v := out.view(3, 4), out[:4].copy_(x[0]), v][3:],
    "accumulated": lambda x: [out := torch.zeros_like(x), out[:, 1:3].add_(x[:, :2]), out.mul(x)][2:],
    "a view of a view": lambda x: [out := torch.zeros(2, *x.shape, dtype=x.dtype), out[1][:, :2].copy_(x[:, :2])][:1],
    "every other": lambda x: [out := torch.zeros(3, 8, dtype=x.dtype), out[:, ::2].copy_(x)][:1],
    "by position": lambda x: [
        out := torch.zeros(3, 4, dtype=x.dtype),
        out.index_put_((torch.tensor([0, 2]),), x[:2]),
    ][:1],
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_into_a_constant(name):
    probe(WRITES[name], r(3, 4))


def test_writing_step_by_step_keeps_the_other_axes():
    """As recurrent attention does; the units stay free."""

    def recur(x, w):
        out = torch.zeros_like(x)
        state = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            state = state * w + x[:, t]
            out[:, t] = state
        return out

    probe(recur, r(2, 3, 4), r(4), free=2)


# Integers that are positions.


POSITIONS = {
    "compared": lambda x: (x.argmax(-1, keepdim=True) > torch.arange(3)).double(),
    "added to": lambda x: x.sum(-1) * (x.argmax(-1) + 1),
    "joined": lambda x: torch.cat([x.argmax(-1), torch.arange(2)]).double(),
    "reduced": lambda x: x.argmax(-1).double().mean(),
    "counted": lambda x: (x > 0).count_nonzero(-1).double(),
    "read": lambda x: x * x.argmax(-1)[0].item(),
    "listed": lambda x: x * x.argmax(-1).tolist()[0],
    "seen by numpy": lambda x: x * float(x.argmax(-1).numpy()[0]),
    "least position": lambda x: x * x.topk(2)[1].min(),
    "sorted": lambda x: x.topk(2)[1].sort(-1)[0].double(),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_that_are_used_as_numbers(name):
    probe(POSITIONS[name], r(3, 4))
