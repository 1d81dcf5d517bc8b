"""Parameters that evaluation does not read: they are tied to the stream they are put into, or refused."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.errors import SymmetryError, SymmetryVerificationError
from hf_lottery.symmetry.groups import Axis, Block
from hf_lottery.symmetry.permutation import permute_
from hf_lottery.symmetry.spec import PermutationSpec


class Masking(nn.Module):
    """Replaces every third frame in training, or those that it is told to replace."""

    def __init__(self, width=8, *, asks=False, drop=0.0):
        super().__init__()
        self.a, self.mask_vector, self.asks, self.drop = (
            nn.Linear(6, width),
            nn.Parameter(torch.rand(width)),
            asks,
            drop,
        )

    def forward(self, x, mask=None):
        x = self.a(x)
        if self.training and not self.asks:
            mask = (torch.rand(x.shape[:2]) < 0.9) & torch.tensor(np.random.rand(*x.shape[:2]) < 0.9)
        if mask is not None:
            x[mask] = self.mask_vector
        return F.dropout(x, self.drop, self.training)


class Network(nn.Module):
    def __init__(self, *, after=lambda x, training: x, **options):
        super().__init__()
        self.front, self.after = Masking(**options), after
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.after(self.norm(self.front(x)).relu(), self.training))


X = torch.randn(3, 7, 6)


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_a_vector_that_only_training_reads_moves_with_its_stream(asks, drop):
    model = Network(asks=asks, drop=drop)
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    spec = discover(model, (X,))
    assert [*spec.free] == ["front.mask_vector[0]"]
    assert spec.members["front.mask_vector[0]"][:3] == [
        ("front.mask_vector", 0),
        ("front.a.weight", 0),
        ("front.a.bias", 0),
    ]
    assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())
    assert (states[2] == np.random.get_state()[1]).all()
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())


def test_a_permuted_network_trains_as_before():
    model = Network().double()
    permutation = discover(model, (X.double(),)).random(1)

    def loss():
        torch.manual_seed(3)
        np.random.seed(3)
        return model(X.double()).square().mean()

    before = loss()
    permute_(model, permutation)
    assert torch.allclose(loss(), before, rtol=1e-12)
    with torch.no_grad():
        model.front.mask_vector.copy_(model.front.mask_vector.roll(1))
    assert not torch.allclose(loss(), before, rtol=1e-3)


@pytest.mark.parametrize(("asks", "way"), [(False, "in training mode"), (True, "with mask (3, 7) given to front")])
def test_verify_runs_the_passes_that_read_the_vector(asks, way):
    model = Network(asks=asks)
    spec = discover(model, (X,))
    report = spec.verify(model, (torch.randn(3, 7, 6),))
    assert report.passes == [way] and f"also {way}" in repr(report) and report.error < 1e-10
    alone = replace(spec.groups["front.mask_vector[0]"], name="alone")
    blocks = (Block((Axis(("alone",), np.arange(8)),)),)
    wrong = PermutationSpec([*spec.groups.values(), alone], {**spec.tensors, "front.mask_vector": blocks})
    with pytest.raises(SymmetryVerificationError):
        wrong.verify(model, (X,), negative_control=False)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    assert discover(plain, (X,)).verify(plain, (X,)).passes == []


def test_a_group_that_moves_in_evaluation_alone_is_frozen():
    ramp = torch.arange(8.0)
    model = Network(after=lambda x, training: x * ramp if training else x)
    with pytest.warns(UserWarning, match=r"permuting .*'front.mask_vector.0.'.* in training mode"):
        spec = discover(model, (X,))
    assert not spec.free


def test_a_vector_that_nothing_reads_is_refused():
    class Unused(Network):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.rand(8))

    model = Unused()
    with pytest.raises(SymmetryError, match=r"received no use of \['unused'\] \(1 in all\)"):
        discover(model, (X,))
    spec = discover(model, (X,), strict=False)
    assert [*spec.free] == ["front.mask_vector[0]"] and spec.groups["unused[0]"].frozen


def test_a_vector_of_which_no_axis_is_known_is_refused():
    """What training reads, but not in the place of anything that is traced, stays unknown."""

    class Alone(Network):
        def __init__(self):
            super().__init__()
            self.alone = nn.Parameter(torch.rand(9))

        def forward(self, x):
            return super().forward(x) + (self.alone.square().sum() if self.training else 0)

    with pytest.raises(SymmetryError, match=r"received no use of \['alone'\]"):
        discover(Alone(), (X,))
