"""Evidence of chosen fields only."""

import pytest
import torch
from torch import nn

from hf_lottery import gather_evidence

BATCHES = [torch.ones(4, 3), torch.full((2, 3), 2.0)]


def gather(model, fields, losses):
    def loss(model, batch):
        losses.append(model(batch).sum())
        return losses[-1]

    return gather_evidence(model, BATCHES, loss, within={"weight": model.weight}, fields=fields)["weight"]


@pytest.mark.parametrize("fields", [(), ("input_norm",), ("start", "input_norm"), ["gradient"], {"gradient", "start"}])
def test_only_what_is_asked_for_is_gathered(fields):
    losses = []
    found = gather(nn.Linear(3, 2), fields, losses)
    assert (found.gradient is not None, found.input_norm is not None) == ("gradient" in fields, "input_norm" in fields)
    assert found.start is None and len(losses) == 2
    assert all(loss.requires_grad is ("gradient" in fields) for loss in losses)


def test_frozen_weights_have_input_norms():
    model = nn.Linear(3, 2).requires_grad_(False)
    found = gather(model, ("input_norm",), [])
    assert found.input_norm.tolist() == [[pytest.approx(12**0.5)] * 3]
    assert model.weight.grad is None
    with pytest.raises(RuntimeError, match="does not require grad"):
        gather(model, ("gradient",), [])


@pytest.mark.parametrize("enabled", [True, False])
def test_whether_gradients_are_tracked_is_restored(enabled):
    with torch.set_grad_enabled(enabled):
        for fields in ((), ("gradient",)):
            gather(nn.Linear(3, 2), fields, [])
            assert torch.is_grad_enabled() is enabled


def test_gradients_that_were_there_stay_without_a_backward():
    model = nn.Linear(3, 2)
    before = model.weight.grad = torch.ones(2, 3)
    gather(model, ("input_norm",), [])
    assert model.weight.grad is before and before.eq(1).all()


def test_no_batches_are_refused_whatever_is_gathered():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="at least one batch; received none"):
        gather_evidence(model, [], lambda *_: 1 / 0, within={"weight": model.weight}, fields=())
