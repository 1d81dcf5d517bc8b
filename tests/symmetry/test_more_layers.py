"""Layers whose symmetry needs more than one rule: recurrences, shuffled channels, windows, bags, normed weights."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_lottery.symmetry import discover


def proven(model, inputs, **options):
    """Discover and verify, without a warning; a rule that leads to one is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = discover(model.eval(), inputs, **options)
    assert spec.verify(model, inputs, negative_control=False).error < 1e-8
    return spec


class Recurrent(nn.Module):
    """A recurrent network that reads its outputs, its final states, or both."""

    def __init__(self, kind, *, reads_state, **options):
        super().__init__()
        self.rnn = kind(4, 6, batch_first=True, **options)
        self.reads_state = reads_state
        directions = 2 if self.rnn.bidirectional else 1
        width = directions * (self.rnn.proj_size or 6)
        self.head, self.last = nn.Linear(width, 3), nn.Linear(width, 3)

    def forward(self, x):
        out, state = self.rnn(x)
        state = state[0] if isinstance(state, tuple) else state
        last = state[-1] if not self.rnn.bidirectional else torch.cat([state[-2], state[-1]], -1)
        return self.head(out) + self.last(last if self.reads_state else out[:, 0])[:, None]


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("reads_state", [False, True])
def test_every_layer_and_direction_has_a_group_of_its_own(kind, directions, layers, reads_state):
    model = Recurrent(kind, reads_state=reads_state, num_layers=layers, bidirectional=directions == 2)
    spec = proven(model, (torch.randn(2, 5, 4),))
    assert len(spec.free) == directions * layers


@pytest.mark.parametrize("reads_state", [False, True])
def test_projected_states_have_groups_of_their_own(reads_state):
    model = Recurrent(nn.LSTM, reads_state=reads_state, num_layers=2, proj_size=5)
    assert len(proven(model, (torch.randn(2, 5, 4),)).free) == 4


def test_states_that_are_outputs_stay_and_cells_are_free():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 6, num_layers=2, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            out, state = self.rnn(x)
            return self.head(out), state[:1]

    spec = proven(Model(), (torch.randn(2, 5, 4),))
    assert len(spec.free) == 1
    assert any("rnn.weight_hh_l1" in name for name, _ in spec.members[next(iter(spec.free))])


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_spectral_norm(norm):
    model = nn.Sequential(norm(nn.Linear(4, 6)), nn.ReLU(), norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3))
    assert len(proven(model, (torch.randn(7, 4),)).free) == 2


@pytest.mark.parametrize("bias", [True, False])
def test_bilinear(bias):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(4, 6), nn.Linear(7, 3)
            self.both = nn.Bilinear(5, 6, 7, bias=bias)

        def forward(self, x):
            return self.c(self.both(self.a(x).relu(), self.b(x).relu()).relu())

    assert len(proven(Model(), (torch.randn(7, 4),)).free) == 3


@pytest.mark.parametrize("mode, weighted", [("sum", False), ("sum", True), ("mean", False), ("max", False)])
@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 3, 4])])
def test_embedding_bag(mode, weighted, offsets):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(9, 6, mode=mode), nn.Linear(6, 3)

        def forward(self, ids, weights):
            given = weights.to(self.bag.weight) if weighted else None
            return self.head(self.bag(ids, offsets, per_sample_weights=given))

    ids = torch.randint(9, (8,) if offsets is not None else (2, 4))
    spec = proven(Model(), (ids, torch.rand(ids.shape)))
    assert [spec.groups[name].size for name in spec.free] == [6]
    assert spec.groups["bag.weight[0]"].frozen == "looked up by position"


class Shuffled(nn.Module):
    """Half of the channels pass through, the others are convolved; then all are shuffled."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.net = nn.Sequential(nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU())

    def forward(self, x):
        kept, used = x.chunk(2, 1)
        return F.channel_shuffle(torch.cat([kept, self.net(used)], 1), 2)


@pytest.mark.parametrize("channels", [16, 12, 20])  # 20: halves of odd length, where a cut ends inside a row
def test_shuffled_channels(channels):
    units = [Shuffled(channels) for _ in range(2)]
    body = [nn.Conv2d(3, channels, 1), *units, nn.Conv2d(channels, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)]
    spec = proven(nn.Sequential(*body), (torch.randn(2, 3, 4, 4),))
    reasons = {group.frozen for group in spec.groups.values()}
    assert not any(reason and "align" in reason for reason in reasons)
    assert spec.coverage(names=["3.weight", "1.net.0.weight"])[1] > (0.99 if channels == 16 else 0.4)


def test_shuffled_channels_of_an_odd_number_of_rows():
    """Three groups of channels are not two: what does not align is not free."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

        def forward(self, x):
            y = self.a(x)
            return self.b(F.channel_shuffle(torch.cat([y[:, :5], y[:, 5:].relu()], 1)[..., None, None], 3)[..., 0, 0])

    proven(Model(), (torch.randn(2, 4),))
