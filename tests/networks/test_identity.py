"""What tells networks apart whose tensors have the same names and shapes, and what does not."""

import json
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from hf_lottery.networks.identity import identity_differences, identity_of, without_counters


class Attention(nn.Module):
    def __init__(self, heads=4, sizes=(3, 4)):
        super().__init__()
        self.h, self.sizes, self.seen, self.dropout, self.cached_length = heads, sizes, heads, heads, heads
        self.qkv = nn.Linear(16, 48)
        self.tables = nn.ParameterList([torch.zeros(2)])


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def extra_repr(self):
        return f"function={self.function}"


def sequence(**modules):
    return nn.Sequential(OrderedDict(modules))


def differences(a, b):
    stored = json.loads(json.dumps(identity_of(a)))
    assert identity_differences(stored, a, where=("there", "here")) == []
    return identity_differences(stored, b, where=("there", "here"))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (Attention(), Attention(2), "h is 4 there, 2 here"),
        (sequence(x=Attention()), sequence(x=Attention(sizes=(4, 3))), "x.sizes is [3, 4] there, [4, 3] here"),
        (nn.MultiheadAttention(16, 4), nn.MultiheadAttention(16, 2), "num_heads is 4 there, 2 here"),
        (nn.GroupNorm(4, 8), nn.GroupNorm(2, 8), "class is 'GroupNorm(4, 8)' there, 'GroupNorm(2, 8)' here"),
        (nn.LayerNorm(8), nn.LayerNorm(8, eps=1.0), "eps=1.0"),
        (nn.BatchNorm2d(8), nn.BatchNorm2d(8, eps=1.0), "eps=1.0"),
        (Function(torch.relu), Function(torch.tanh), "tanh"),
        (nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, dilation=2), "dilation=(2, 2)"),
        (sequence(act=nn.ReLU()), sequence(act=nn.GELU()), "act is 'ReLU()' there, 'GELU()' here"),
        (sequence(a=nn.ReLU()), sequence(a=nn.ReLU(), b=nn.ChannelShuffle(2)), "b is not set there, 'ChannelShuffle("),
        (sequence(a=nn.PixelShuffle(2)), sequence(a=nn.PixelShuffle(4)), "upscale_factor=4"),
    ],
)
def test_networks_that_differ(a, b, message):
    assert message in "; ".join(differences(a, b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (sequence(a=nn.Dropout(0.1)), sequence(a=nn.Dropout(0.5))),
        (sequence(a=nn.Dropout(0.1)), sequence(a=nn.Identity())),
        (sequence(a=nn.ReLU(inplace=True)), sequence(a=nn.ReLU())),
        (nn.LeakyReLU(0.2, inplace=True), nn.LeakyReLU(0.2)),
        (nn.BatchNorm2d(8), nn.BatchNorm2d(8, momentum=0.01)),
        (sequence(a=nn.BatchNorm2d(8)), nn.SyncBatchNorm.convert_sync_batchnorm(sequence(a=nn.BatchNorm2d(8)))),
        (Function(lambda x: x.relu()), Function(lambda x: x.relu())),  # at other addresses
        (nn.LSTM(3, 4, num_layers=2, dropout=0.5), nn.LSTM(3, 4, num_layers=2)),
        (nn.MultiheadAttention(16, 4, dropout=0.5), nn.MultiheadAttention(16, 4)),
        (Attention(), Attention().double().train(False)),
        (Attention(), nn.DataParallel(Attention())),
        (sequence(a=Attention()), sequence(a=torch.compile(Attention()))),
    ],
)
def test_networks_that_do_not_differ(a, b):
    assert differences(a, b) == differences(b, a) == []


def test_what_another_version_prints_of_a_default_does_not_matter():
    class GroupNorm(nn.GroupNorm):
        def extra_repr(self):
            return "4, 8, eps=1e-05"

    stored = identity_of(GroupNorm(4, 8))
    assert stored["class"] == "GroupNorm(4, 8)" == identity_of(nn.GroupNorm(4, 8))["class"]


def test_what_training_counts_does_not_count():
    a: Any = Attention()
    b: Any = Attention()
    b.seen, b.dropout, b.cached_length = 7, 7, 7
    assert differences(a, b) == []
    b.n_updates, b.num_batches, b.step_count, b.history = 3, 3, 3, [1, 2]  # counted in training alone
    assert differences(a, b) == []
    b.n = 1  # a counter of one's own
    before = identity_of(b)
    b.n = 2
    stored = without_counters(before, identity_of(b))
    b.n = 33
    assert identity_differences(stored, b, where=("there", "here")) == []
    assert identity_differences(before, b, where=("there", "here")) == ["n is 1 there, 33 here"]


def test_a_model_with_a_configuration_is_known_by_it():
    class Config:
        def __init__(self, heads=4):
            self.heads = heads

        def to_dict(self):
            return {"heads": self.heads, "hidden_dropout_prob": 0.1}

    class Model(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config, self.n = config, config.heads

    class Other(Model):
        pass

    assert identity_of(Model(Config())) == {"class": "Model", "heads": 4}
    assert differences(Model(Config()), Model(Config(2))) == ["heads is 4 there, 2 here"]
    assert differences(Model(Config()), Other(Config())) == ["class is 'Model' there, 'Other' here"]
    older = {"class": "Model"}
    assert identity_differences(older, Model(Config()), where=("there", "here")) == []
    mine: Any = Attention()
    mine.config = {"seed": 3}  # the settings of a script
    assert identity_of(mine) == identity_of(Attention())
