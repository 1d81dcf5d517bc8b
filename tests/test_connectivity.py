"""The straight line between two networks."""

import copy

import pytest
import torch
from torch import nn

from hf_lottery import Barrier, MaskMismatchError, error_barrier
from hf_lottery.rewind import Snapshot


def net(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].running_mean.normal_()
    model[1].num_batches_tracked.fill_(seed)
    return model


def test_every_parameter_and_statistic_takes_part_and_all_is_put_back():
    a, b = net(1), net(2)
    before, other = Snapshot.capture(a), Snapshot.capture(b)
    seen = []

    def evaluate(model):
        assert model is a
        seen.append(Snapshot.capture(model))
        return float(len(seen))

    found = error_barrier(a, b, evaluate, points=3)
    assert found == Barrier((0.0, 0.5, 1.0), (1.0, 2.0, 3.0))
    for name, start in before.tensors.items():
        if start.is_floating_point():
            torch.testing.assert_close(seen[1].tensors[name], (start + other.tensors[name]) / 2)
            assert torch.equal(seen[0].tensors[name], start) and torch.equal(seen[2].tensors[name], other.tensors[name])
        else:
            assert all(torch.equal(point.tensors[name], start) for point in seen)
    assert Snapshot.capture(a).sha256() == before.sha256()
    assert Snapshot.capture(b).sha256() == other.sha256()


def test_a_network_has_no_barrier_to_itself():
    a, x = net(1).eval(), torch.randn(16, 3)
    found = error_barrier(a, copy.deepcopy(a), lambda model: model(x).square().mean().item())
    assert len(found.errors) == 11
    assert max(found.errors) - min(found.errors) <= 1e-6
    assert abs(found.barrier) <= 1e-6


def test_both_baselines():
    bump = Barrier((0.0, 0.25, 0.5, 0.75, 1.0), (1.0, 4.0, 3.0, 3.0, 3.0))
    assert bump.barrier == 2.0
    assert bump.linear_barrier == 2.5
    flat = Barrier((0.0, 0.5, 1.0), (3.0, 2.0, 1.0))
    assert flat.barrier == 1.0
    assert flat.linear_barrier == 0.0


def test_the_first_network_is_back_after_an_error():
    a, b = net(1), net(2)
    before = Snapshot.capture(a).sha256()
    values = iter([0.0])
    with pytest.raises(StopIteration):
        error_barrier(a, b, lambda _: next(values))
    assert Snapshot.capture(a).sha256() == before


def test_networks_that_cannot_be_joined():
    with pytest.raises(ValueError, match="points must be at least 2, the two ends; received 1"):
        error_barrier(net(1), net(2), lambda _: 0.0, points=1)
    with pytest.raises(MaskMismatchError, match="'0.bias' is in one only"):
        error_barrier(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2), lambda _: 0.0)
    with pytest.raises(
        MaskMismatchError, match=r"'weight' must have one shape in both networks; received \[2, 3\] and"
    ):
        error_barrier(nn.Linear(3, 2), nn.Linear(2, 2), lambda _: 0.0)
