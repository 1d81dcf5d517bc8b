"""What a forward pass changes in a model besides its outputs is put back by discover and verify."""

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from hf_lottery.symmetry import SymmetryError, discover

INPUTS = (torch.ones(5, 4).cumsum(0),)


class Writing(nn.Module):
    """A network that calls ``write(self, hidden)`` in every pass."""

    def __init__(self, write=None):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.follower = nn.Parameter(torch.randn(6, 4), requires_grad=False)
        self.register_buffer("queue", torch.randn(3, 6))
        self.calls, self.write = 0, write

    def forward(self, x):
        hidden = self.first(x) + nn.functional.linear(x, self.follower).tanh()
        if self.write is not None:
            self.write(self, hidden.detach())
        return self.last(hidden.relu())


def follow(model, _):
    with torch.no_grad():
        model.follower.lerp_(model.first.weight, 0.1)


def extend(model, hidden):
    if model.training:
        model.queue = torch.cat([model.queue, hidden])


def empty(model, _):
    model.queue = None


def count(model, _):
    model.calls += 1
    model.queue.add_(1.0)
    model.last_calls = model.calls


def reseat(model, _):
    model.follower.data = model.follower.data * 2


def register(model, hidden):
    model.register_buffer("seen", hidden)


def draw(_model, _hidden):
    torch.rand(3), np.random.rand(), random.random()


def state_of(model):
    tensors = {name: (id(t), t.tolist()) for name, t in (*model.named_parameters(), *model.named_buffers())}
    places = {name: t.data_ptr() for name, t in model.named_parameters()}
    generators = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    return tensors, places, sorted(vars(model)), model.calls, model.training, generators


@pytest.mark.parametrize("proof", ["full", "fast", "later"])
@pytest.mark.parametrize("write", [follow, extend, empty, count, reseat, register, draw])
@pytest.mark.filterwarnings("ignore:operations without a rule", "ignore:permuting")
def test_a_model_that_writes_is_put_back(write, proof):
    model = Writing(write)
    before = state_of(model)
    spec = discover(model, INPUTS, proof=proof)
    assert state_of(model) == before
    if write in (extend, empty, count, register):
        assert "follower[0]" in spec.free
        spec.verify(model, INPUTS)
        assert state_of(model) == before


@pytest.mark.parametrize("proof", ["full", "fast", "later"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("after", range(1, 6))
@pytest.mark.filterwarnings("ignore:operations without a rule", "ignore:permuting")
def test_a_model_is_put_back_when_a_pass_stops(proof, error, after):
    passes = []

    def stop(model, hidden):
        for write in (follow, extend, count, register, draw):
            write(model, hidden)
        passes.append(1)
        if len(passes) == after:
            raise error

    model = Writing(stop)
    before = state_of(model)
    with suppress(SymmetryError, RuntimeError, KeyboardInterrupt):
        discover(model, INPUTS, proof=proof)
    assert state_of(model) == before


def test_an_embedding_keeps_rows_that_a_pass_shortens():
    model = nn.Sequential(nn.Embedding(7, 6, max_norm=0.1), nn.Linear(6, 3))
    before = model[0].weight.tolist()
    with pytest.warns(UserWarning, match="embedding_renorm"):
        discover(model, (torch.arange(6).view(2, 3),), proof="fast")
    assert model[0].weight.tolist() == before


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_a_norm_has_computed_is_put_back():
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3))
    computed = model[0].weight
    spec = discover(model, INPUTS)
    spec.verify(model, INPUTS)
    assert model[0].weight is computed and computed.requires_grad


class Capturing(nn.Module):
    """Adds a hook in its first pass, and an attribute that says so, as transformers does to collect hidden states."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.seen = nn.Linear(6, 5), nn.Linear(5, 2), []

    def forward(self, x):
        if not getattr(self, "hooked", False):
            self.first.register_forward_hook(lambda module, args, output: self.seen.append(output))
            self.hooked = True
        self.seen.clear()
        self.first(x)
        assert len(self.seen) == 1
        return self.last(self.seen[0].relu())


@pytest.mark.parametrize("proof", ["full", "fast", "later"])
def test_hooks_of_the_first_pass_go_with_the_attribute_that_tells_of_them(proof):
    model, inputs = Capturing(), (torch.randn(3, 6),)
    spec = discover(model, inputs, proof=proof)
    assert not model.first._forward_hooks and not hasattr(model, "hooked") and spec.free
    assert spec.verify(model, inputs).error < 1e-8
    model(*inputs)
