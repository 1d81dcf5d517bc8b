"""Batches of every kind, moved to the device of the model."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

from hf_lottery.networks.forward import run

ONE, TWO = torch.ones(2, 3), torch.full((2, 3), 2.0)
Pair = namedtuple("Pair", "x y")


class Recorder(nn.Module):
    """Returns what it was called with."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, *args, **kwargs):
        return args, kwargs


@pytest.mark.parametrize(
    ("batch", "args", "kwargs"),
    [
        (ONE, (ONE,), {}),
        ((ONE, TWO), (ONE, TWO), {}),
        ([ONE, TWO], (ONE, TWO), {}),
        (Pair(ONE, TWO), (ONE, TWO), {}),
        ({"x": ONE, "y": TWO}, (), {"x": ONE, "y": TWO}),
        (OrderedDict(x=ONE), (), {"x": ONE}),
        (((ONE, TWO), 7, None), ((ONE, TWO), 7, None), {}),
        ({"x": [ONE, {"y": TWO}], "flag": True}, (), {"x": [ONE, {"y": TWO}], "flag": True}),
    ],
)
def test_kinds_of_batches(batch, args, kwargs):
    assert run(Recorder(), batch) == (args, kwargs)  # the very same tensors, as they need no move


def test_tensors_are_moved_wherever_they_are():
    (first, rest, number), _ = run(Recorder("meta"), (ONE, [ONE, {"y": (TWO,)}], 3))
    assert number == 3 and type(rest) is list and type(rest[1]["y"]) is tuple
    assert first.device == rest[0].device == rest[1]["y"][0].device == torch.device("meta")
    assert run(Recorder("meta"), {"x": ONE})[1]["x"].is_meta and ONE.device.type == "cpu"


def test_a_model_without_parameters_runs_on_the_cpu():
    assert torch.equal(run(nn.Identity(), ONE), ONE)


def test_a_function_replaces_the_call_and_the_move():
    model = Recorder("meta")
    assert run(model, (ONE, TWO), forward=lambda *args: args) == (model, (ONE, TWO))


class Scaled(nn.Module):
    def forward(self, x, *, scale=1.0):
        return x * scale


@pytest.mark.parametrize(
    ("batch", "received"),
    [
        ((torch.ones(2), torch.ones(2)), "a tuple of 2"),
        ([torch.ones(2), torch.ones(2)], "a tuple of 2"),
        ({"x": torch.ones(2), "labels": 1}, r"the keys \['labels', 'x'\].*'labels'"),
        ({"scale": 2.0}, r"the keys \['scale'\].*'x'"),
    ],
)
def test_a_batch_that_the_model_does_not_take(batch, received):
    with pytest.raises(ValueError, match=rf"the arguments of Scaled.forward; received {received}.*forward=lambda"):
        run(Scaled(), batch)


def test_an_error_inside_the_model_stays_its_own():
    class Broken(nn.Module):
        def forward(self, x):
            return x()

    with pytest.raises(TypeError, match="not callable"):
        run(Broken(), (torch.ones(2),))
