"""A norm is folded only if linear layers alone read it; each way to read it has a case."""

import copy

import pytest
import torch
from pre_norm_networks import Case, OnePlusNorm, state
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from hf_lottery.signs.norm_folding import fold_norms_


class Doubled(nn.Linear):
    def forward(self, input):
        return super().forward(input) + input


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, (4,)) * self.weight[:, None] + self.bias[:, None]


class ScaledFirstNorm(nn.RMSNorm):
    def forward(self, x):
        return F.rms_norm(x * self.weight, (4,))


class PairNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x), x


class ThreeNorm(nn.LayerNorm):
    def __init__(self):
        super().__init__(4)
        self.more = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return super().forward(x) * self.more


def twice(net, x):
    return net.a(net.norm(x)) + net.b(net.norm(-x))


def written(net, x):
    y = net.norm(x)
    z = net.a(y)
    y += 1
    return z + net.b(y)


def weight_used(net, x):
    return net.a(net.norm(x)) + F.linear(x, net.a.weight)


ALONE = {
    "residual": Case(lambda net, x: net.norm(x) + net.a(net.norm.forward(x))),
    "residual and linear": Case(lambda net, x: (y := net.norm(x)) + net.a(y)),
    "pooling": Case(lambda net, x: (y := net.norm(x)).mean(1) + net.a(y)[:, 0]),
    "one token": Case(lambda net, x: net.a(net.norm(x)[:, 0])),
    "one sequence": Case(lambda net, x: net.a(net.norm(x)[:1])),
    "indexing": Case(lambda net, x: net.a(net.norm(x)[torch.arange(2), 1])),
    "an output": Case(lambda net, x: ((y := net.norm(x)), net.a(y))),
    "a view as output": Case(lambda net, x: (net.a(y := net.norm(x)), y.transpose(1, 2))),
    "token mixing": Case(lambda net, x: net.a(net.norm(x).transpose(1, 2))),
    "token mixing in memory's order": Case(lambda net, x: net.a(net.norm(x.mT).mT), OnePlusNorm(4)),
    "copied in inference mode": Case(
        torch.inference_mode()(lambda net, x: net.a(y := net.norm(x)) + y.mT.reshape(2, 16).view(2, 4, 4))
    ),
    "pairs of features": Case(lambda net, x: net.a(net.norm(x).view(2, 8, 2)), reader=nn.Linear(2, 4)),
    "called twice": Case(twice),
    "reader called twice": Case(lambda net, x: net.a(net.norm(x)) + net.a(x)),
    "no reader": Case(lambda net, x: net.norm(x).sum()),
    "not called": Case(lambda net, x: net.a(x)),
    "written to": Case(written),
    "weight used elsewhere": Case(weight_used),
    "another kind of linear layer": Case(lambda net, x: net.a(net.norm(x)), reader=Doubled(4, 4)),
    "convolution": Case(lambda net, x: net.a(net.norm(x)), reader=nn.Conv1d(4, 4, 1)),
    "parametrized": Case(lambda net, x: net.a(net.norm(x)), reader=weight_norm(nn.Linear(4, 4))),
    "shift without bias": Case(lambda net, x: net.a(net.norm(x)), reader=nn.Linear(4, 4, bias=False)),
    "another axis": Case(lambda net, x: net.a(net.norm(x)), ChannelsFirstNorm(4)),
    "two axes": Case(lambda net, x: net.a(net.norm(x)), nn.LayerNorm((4, 4))),
    "scaled before": Case(lambda net, x: net.a(net.norm(x)), ScaledFirstNorm(4)),
    "two outputs": Case(lambda net, x: net.a(net.norm(x)[0]), PairNorm(4)),
    "three parameters": Case(lambda net, x: net.a(net.norm(x)), ThreeNorm()),
    "batch norm": Case(lambda net, x: net.a(net.norm(x.view(8, 4))), nn.BatchNorm1d(4)),
}
FOLDED = {
    "itself": Case(lambda net, x: net.a(net.norm(x)) * net.b(x)),
    "flattened": Case(lambda net, x: net.a(net.norm(x).view(8, 4))),
    "dropout": Case(lambda net, x: net.a(F.dropout(net.norm(x), training=net.training))),
    "transposed to and fro": Case(lambda net, x: net.a(net.norm(x).mT.mT)),
    "inference mode": Case(torch.inference_mode()(lambda net, x: net.a(net.norm(x).reshape(8, 4)))),
    "not contiguous": Case(lambda net, x: net.a(net.norm(x.mT)), OnePlusNorm(4)),
    "two names": Case(lambda net, x: net.a(net.norm(x))),
}
FOLDED["two names"].alias = FOLDED["two names"].a


@torch.no_grad()
@pytest.mark.parametrize("name", [*ALONE, *FOLDED])
def test_readers(name):
    model = copy.deepcopy((ALONE | FOLDED)[name]).double()
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter))
    x, old = torch.randn(2, 4, 4).double(), state(model)
    before = model.eval()(x)
    assert fold_norms_(model, x) == (("good.norm",) if name in ALONE else ("good.norm", "norm"))
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    parts = ("norm.", "a.", "b.") if name in ALONE else ("b.",)
    assert all(torch.equal(w, old[key]) for key, w in model.state_dict().items() if key.startswith(parts))


@pytest.mark.parametrize("tie", ["norms", "an earlier norm", "readers", "memory"])
def test_ties(tie):
    """Also to a parameter that the pass does not use."""
    model = Case(lambda net, x: net.a(net.norm(x)))
    if tie == "norms":
        model.other = nn.LayerNorm(4)
        model.other.weight = model.norm.weight
    elif tie == "an earlier norm":
        model.good.other = nn.LayerNorm(4)
        model.good.other.weight = model.norm.weight
    elif tie == "readers":
        model.b.weight = model.a.weight
    else:
        model.b.weight.data = model.a.weight.data.T
    assert fold_norms_(model, torch.randn(2, 4, 4)) == ("good.norm",)
