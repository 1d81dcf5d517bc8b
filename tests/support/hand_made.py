"""Small networks with specs written by hand, and pairs of them, for the tests of everything that uses a spec."""

import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hf_lottery.symmetry.groups import KERNEL, Axis, Block, Group
from hf_lottery.symmetry.permutation import permute_
from hf_lottery.symmetry.spec import PermutationSpec

FROZEN = "input or output"


def spec_of(groups: dict, tensors: dict) -> PermutationSpec:
    """Make a spec from a short notation.

    Args:
        groups: Name -> size, or (size, parents), or (size, parents, frozen).
        tensors: Name -> axes, one string of leaves each, or a list of such (blocks stacked along axis 0).
    """
    made = {name: Group(name, *(spec if isinstance(spec, tuple) else (spec,))) for name, spec in groups.items()}
    blocks = {}
    for name, axes in tensors.items():
        offset, blocks[name] = 0, []
        for block in axes if isinstance(axes, list) else [axes]:
            found = []
            for k, leaves in enumerate(tuple(axis.split()) for axis in block):
                shape = [made[leaf].size for leaf in leaves]
                start = offset if k == 0 else 0
                found.append(Axis(leaves, start + np.arange(math.prod(shape), dtype=np.int64).reshape(shape)))
            offset += found[0].positions.size if found else 0
            blocks[name].append(Block(tuple(found)))
    return PermutationSpec(made.values(), blocks)


def mlp(widths=(6, 16, 12, 4)):
    model = nn.Sequential(
        nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2]), nn.ReLU(), nn.Linear(*widths[2:])
    )
    groups = {"in": (widths[0], (), FROZEN), "h1": widths[1], "h2": widths[2], "out": (widths[3], (), FROZEN)}
    tensors = {
        "0.weight": ("h1", "in"), "0.bias": ("h1",), "2.weight": ("h2", "h1"), "2.bias": ("h2",),
        "4.weight": ("out", "h2"), "4.bias": ("out",),
    }  # fmt: skip
    return model, spec_of(groups, tensors), (widths[0],)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.conv2, self.bn2 = nn.Conv2d(10, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x):
        x = F.relu(self.bn0(self.stem(x)))
        y = self.depthwise(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(y)) + x)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def resnet():
    groups = {
        "image": (3, (), FROZEN), "ky": (3, (), KERNEL), "kx": (3, (), KERNEL), "stream": 8, "mid": 10,
        "pixel": (4, (), "spatial"), "out": (5, (), FROZEN),
    }  # fmt: skip
    tensors = {
        "stem.weight": ("stream", "image", "ky", "kx"), "conv1.weight": ("mid", "stream", "ky", "kx"),
        "depthwise.weight": ("mid", "", "ky", "kx"), "depthwise.bias": ("mid",),
        "conv2.weight": ("stream", "mid", "ky", "kx"),
        "head.weight": ("out", "stream pixel"), "head.bias": ("out",),
    }  # fmt: skip
    for bn, group in (("bn0", "stream"), ("bn1", "mid"), ("bn2", "stream")):
        tensors |= {f"{bn}.{part}": (group,) for part in ("weight", "bias", "running_mean", "running_var")}
    return ResNet(), spec_of(groups, tensors), (3, 6, 6)


class Attention(nn.Module):
    """Queries fused with keys and values; ``rep`` query heads read each key-value head."""

    def __init__(self, kv=3, rep=1, qd=4, vd=5, dim=12):
        super().__init__()
        self.sizes = kv, rep, qd, vd
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, kv * rep * qd + kv * qd + kv * vd)
        self.o = nn.Linear(kv * rep * vd, dim)
        self.head = nn.Linear(dim, dim, bias=False)
        self.embed = nn.Linear(dim, dim, bias=False)
        self.head.weight = self.embed.weight  # tied, as [vocabulary, stream]

    def forward(self, x):
        kv, rep, qd, vd = self.sizes
        x = x @ self.embed.weight
        q, k, v = self.qkv(self.norm(x)).split([kv * rep * qd, kv * qd, kv * vd], -1)
        q, k, v = q.unflatten(-1, (kv, rep, qd)), k.unflatten(-1, (kv, qd)), v.unflatten(-1, (kv, vd))
        weights = torch.einsum("bnkrd,bmkd->bkrnm", q, k).div(qd**0.5).softmax(-1)
        mixed = torch.einsum("bkrnm,bmkd->bnkrd", weights, v)
        return F.linear(x + self.o(mixed.flatten(2)), self.head.weight)


def attention(kv=3, rep=1, qd=4, vd=5, dim=12):
    groups = {
        "vocab": (dim, (), FROZEN), "stream": dim, "kv": kv, "rep": (rep, ("kv",)), "qd": (qd, ("kv",)),
        "vd": (vd, ("kv",)),
    }  # fmt: skip
    rows = ["kv rep qd", "kv qd", "kv vd"]
    tensors = {
        "norm.weight": ("stream",), "norm.bias": ("stream",),
        "qkv.weight": [(row, "stream") for row in rows], "qkv.bias": [(row,) for row in rows],
        "o.weight": ("stream", "kv rep vd"), "o.bias": ("stream",),
        "head.weight": ("vocab", "stream"), "embed.weight": ("vocab", "stream"),
    }  # fmt: skip
    return Attention(kv, rep, qd, vd, dim), spec_of(groups, tensors), (7, dim)


def gqa():
    return attention(kv=3, rep=2, qd=4, vd=5)


class Experts(nn.Module):
    """Experts in groups, as stacked parameters; the best group is summed with the softmax of its experts."""

    def __init__(self, groups=3, experts=3, units=8, dim=16):
        super().__init__()
        self.groups = groups
        self.inner = nn.Linear(5, dim)
        self.router = nn.Linear(dim, groups * experts)
        self.up = nn.Parameter(torch.randn(groups * experts, units, dim))
        self.down = nn.Parameter(torch.randn(groups * experts, dim, units))
        self.head = nn.Linear(dim, 3)

    def forward(self, x):
        x = self.inner(x).tanh()
        scores = self.router(x).unflatten(-1, (self.groups, -1))
        gates = (scores.softmax(-1) * scores.amax(-1, keepdim=True).softmax(-2)).flatten(-2)
        y = torch.einsum("edi,bei->bed", self.down, torch.einsum("eid,bd->bei", self.up, x).relu())
        return self.head(x + torch.einsum("be,bed->bd", gates, y))


def experts(groups=3, experts=3, units=8, dim=16):
    sizes = {
        "in": (5, (), FROZEN), "stream": dim, "G": groups, "E": (experts, ("G",)), "I": (units, ("G", "E")),
        "out": (3, (), FROZEN),
    }  # fmt: skip
    tensors = {
        "inner.weight": ("stream", "in"), "inner.bias": ("stream",), "router.weight": ("G E", "stream"),
        "router.bias": ("G E",), "up": ("G E", "I", "stream"), "down": ("G E", "stream", "I"),
        "head.weight": ("out", "stream"), "head.bias": ("out",),
    }  # fmt: skip
    return Experts(groups, experts, units, dim), spec_of(sizes, tensors), (5,)


class Square(nn.Module):
    """A recurrence: one group on both axes of one tensor."""

    def __init__(self, dim=10):
        super().__init__()
        self.first, self.square, self.last = nn.Linear(4, dim), nn.Linear(dim, dim), nn.Linear(dim, 3)

    def forward(self, x):
        x = self.first(x).tanh()
        for _ in range(3):
            x = self.square(x).tanh()
        return self.last(x)


def square():
    groups = {"in": (4, (), FROZEN), "h": 10, "out": (3, (), FROZEN)}
    tensors = {
        "first.weight": ("h", "in"), "first.bias": ("h",), "square.weight": ("h", "h"), "square.bias": ("h",),
        "last.weight": ("out", "h"), "last.bias": ("out",),
    }  # fmt: skip
    return Square(), spec_of(groups, tensors), (4,)


NETWORKS = {f.__name__: f for f in (mlp, resnet, attention, gqa, experts, square)}


def network(name: str, seed: int = 0):
    """Make a randomised float64 network in eval mode, its spec, and inputs."""
    torch.manual_seed(seed)
    model, spec, shape = NETWORKS[name]()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.double().eval(), spec, torch.randn(64, *shape, dtype=torch.float64)


def planted(name: str, seed: int = 0, noise: float = 0.02):
    """Make a target that is a permuted source with noise: source, target, spec, inputs, the permutation planted."""
    source, spec, x = network(name, seed)
    p, target = spec.random(seed + 1), copy.deepcopy(source)
    permute_(target, p)
    with torch.no_grad():
        for w in target.parameters():
            w.add_(noise * torch.randn_like(w))
    return source, target, spec, x, p


def unrelated(name: str):
    """Make two networks of different seeds: source, target, spec, inputs."""
    source, spec, x = network(name, 1)
    return source, network(name, 2)[0], spec, x
