"""The plane through three networks."""

import copy

import pytest
import torch
from torch import nn

from hf_lottery.connectivity.plane import Plane, loss_plane
from hf_lottery.masks.mask import MaskMismatchError
from hf_lottery.training.snapshot import Snapshot


def points(*values):
    """Networks whose parameters are these points of three-dimensional space."""
    models = []
    for value in values:
        model = nn.Linear(2, 1)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([value[:2]]))
            model.bias.fill_(value[2])
        models.append(model)
    return models


def place(model):
    return [*model.weight.flatten().tolist(), model.bias.item()]


def test_the_grid_lies_where_it_says():
    a, b, c = points((1.0, 2.0, 3.0), (1.0, 2.0, 7.0), (4.0, 2.0, 5.0))
    before, seen = Snapshot.capture(a).sha256(), []
    found = loss_plane(a, b, c, lambda model: seen.append(place(model)) or sum(place(model)), points=5, margin=0.5)
    assert found.places == ((0.0, 0.0), (4.0, 0.0), (pytest.approx(2.0), pytest.approx(3.0)))
    assert found.xs == (-2.0, 0.0, 2.0, 4.0, 6.0) and found.ys == pytest.approx((-1.5, 0.0, 1.5, 3.0, 4.5))
    expected = [[1 + y, 2, 3 + x] for y in found.ys for x in found.xs]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected))
    rows = torch.tensor(expected).sum(-1).unflatten(0, (5, 5))
    torch.testing.assert_close(torch.tensor(found.errors), rows)
    assert Snapshot.capture(a).sha256() == before
    assert place(b) == [1.0, 2.0, 7.0] and place(c) == [4.0, 2.0, 5.0]


def test_the_three_networks_are_on_the_grid_and_distances_are_those_of_the_weights():
    torch.manual_seed(5)
    a, b, c = (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)) for _ in range(3))
    with torch.no_grad():
        for model in (b, c):
            model[1].weight.add_(torch.randn(4))
    ends = [Snapshot.capture(model).tensors for model in (a, b, c)]
    flat = [torch.cat([tensor.flatten() for tensor in end.values()]) for end in ends]

    def nearest(model):
        here = torch.cat([tensor.flatten() for tensor in Snapshot.capture(model).tensors.values()])
        return min((here - end).norm().item() for end in flat)

    found = loss_plane(a, b, c, nearest, points=2, margin=0.0)
    (_, _), (x, _), third = found.places
    assert x == pytest.approx((flat[1] - flat[0]).norm().item(), rel=1e-5)
    assert torch.tensor(third).norm().item() == pytest.approx((flat[2] - flat[0]).norm().item(), rel=1e-5)
    assert found.errors[0] == pytest.approx((0.0, 0.0), abs=1e-5)


def test_all_is_put_back_after_an_error():
    a, b, c = points((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    values = iter([0.0])
    with pytest.raises(StopIteration):
        loss_plane(a, b, c, lambda _: next(values))
    assert place(a) == [0.0, 0.0, 0.0]


def test_a_grid_that_cannot_be():
    a, b, c = points((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (3.0, 0.0, 0.0))
    for third in (c, copy.deepcopy(b), copy.deepcopy(a)):
        with pytest.raises(ValueError, match="three networks must not lie on one line"):
            loss_plane(a, b, third, lambda _: 0.0)
    with pytest.raises(ValueError, match="three networks must not lie on one line"):
        loss_plane(a, copy.deepcopy(a), b, lambda _: 0.0)
    for options in ({"points": 1}, {"margin": -0.1}):
        with pytest.raises(ValueError, match="points must be at least 2 and margin 0 or more; received"):
            loss_plane(a, b, c, lambda _: 0.0, **options)
    with pytest.raises(MaskMismatchError, match="'weight' must have one shape in both networks"):
        loss_plane(a, b, nn.Linear(3, 1), lambda _: 0.0)


def test_print_in_one_line():
    errors = ((1.0, 2.0, 3.0), (4.0, float("nan"), 6.0))
    plane = Plane(((0.0, 0.0), (2.0, 0.0), (1.0, 1.5)), (0.0, 1.0, 2.0), (0.0, 1.0), errors)
    assert repr(plane) == "Plane(3 x 2 points, errors 1 to 6, networks at (0, 0), (2, 0), (1, 1.5))"
