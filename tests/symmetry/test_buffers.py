"""Buffers: data of the units moves with its weights, a constant of the architecture holds them."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_lottery.symmetry.discovery import discover


class WithBuffer(nn.Module):
    """A hidden layer that is scaled by a buffer."""

    def __init__(self, *, persistent=True, follows=False):
        super().__init__()
        self.a, self.b, self.follows = nn.Linear(6, 8), nn.Linear(8, 5), follows
        self.register_buffer("scale", torch.rand(8) + 0.5, persistent=persistent)

    def forward(self, x):
        x = self.a(x).relu()
        if self.training and self.follows == "in place":
            self.scale.mul_(0.9).add_(0.1 * x.detach().mean((0, 1)))
        elif self.training and self.follows:
            self.scale = 0.9 * self.scale + 0.1 * x.detach().mean((0, 1))
        return self.b(nn.functional.dropout(x * self.scale, 0.5, self.training))


class FrozenNorm(nn.Module):
    """Statistics, scale and shift of a norm that does not train, as detectors have it."""

    def __init__(self, width):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width) + 0.5)

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale + (self.bias - self.running_mean * scale)


def spec_and_state(model):
    x = torch.randn(3, 7, 6)
    held = {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=True).items()}
    same, random_state, of_numpy = dict(model.named_buffers()), torch.get_rng_state(), np.random.get_state()[1].copy()
    spec = discover(model, (x,))
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())
    assert all(tensor is same[name] for name, tensor in model.named_buffers())
    assert torch.equal(random_state, torch.get_rng_state()) and (of_numpy == np.random.get_state()[1]).all()
    if spec.free:
        assert spec.verify(model, (torch.randn(2, 5, 6),)).error < 1e-10
    return spec


@pytest.mark.parametrize("follows", ["in place", "by a new tensor"])
def test_a_buffer_that_training_writes_moves(follows):
    spec = spec_and_state(WithBuffer(follows=follows))
    assert ("scale", 0) in spec.members["a.weight[0]"] and [*spec.free] == ["a.weight[0]"]


@pytest.mark.parametrize("options", [{}, {"persistent": False}, {"persistent": False, "follows": "in place"}])
def test_a_buffer_that_may_be_a_constant_holds(options):
    """What is not saved is made anew when a model is loaded; what training leaves alone may be a table of positions."""
    spec = spec_and_state(WithBuffer(**options))
    assert not spec.free and spec.groups["a.weight[0]"].frozen == "a constant buffer"


def test_a_frozen_norm_moves():
    model = nn.Sequential(nn.Linear(6, 8), FrozenNorm(8), nn.ReLU(), nn.Linear(8, 5))
    spec = spec_and_state(model)
    assert [*spec.free] == ["0.weight[0]"] and ("1.weight", 0) in spec.members["0.weight[0]"]


def test_a_model_that_cannot_run_in_training_mode_is_left_as_it_is():
    class Fails(WithBuffer):
        def forward(self, x):
            if self.training:
                raise ValueError("give labels")
            return super().forward(x)

    model = Fails()
    assert not spec_and_state(model).free and not any(module.training for module in model.eval().modules())


class Codes(nn.Module):
    """A codebook, whose counts only training reads, and a queue of what it saw."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.codes = nn.Linear(6, 8), nn.Linear(8, 5), nn.Parameter(torch.randn(4, 8))
        self.register_buffer("counts", torch.zeros(4))
        self.register_buffer("queue", torch.randn(7, 8))

    def forward(self, x):
        x = self.a(x).tanh()
        near = torch.softmax(x @ self.codes.T, -1)
        if self.training:
            self.counts.mul_(0.9).add_(near.detach().mean((0, 1)))
            self.queue.copy_(torch.cat([self.queue[4:], x.detach()[:, 0], x.detach()[:1, 1]]))
        return self.b(near @ self.codes)


def test_a_buffer_that_only_training_reads_follows_what_training_ties_it_to():
    spec = spec_and_state(Codes())
    assert spec.tensors["counts"][0].axes[0].leaves == spec.tensors["codes"][0].axes[0].leaves
    assert spec.groups[spec.tensors["codes"][0].axes[0].leaves[0]].frozen is None
    assert all(spec.groups[leaf].frozen for block in spec.tensors["queue"] for leaf in block.axes[0].leaves)
