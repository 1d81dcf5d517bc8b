"""Modes of modules are restored one by one, also after an error."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from hf_lottery.networks.modes import evaluating, restored_modes


def network():
    """A network in training with a part in eval mode."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model[1][0].eval()
    return model


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("error", [None, KeyError])
@pytest.mark.parametrize("change", [lambda model: model.eval(), lambda model: model.train(), lambda model: None])
def test_every_mode_is_restored(change, error):
    model = network()
    before = modes(model)
    assert before == [True, True, True, False, True]
    with suppress(KeyError), restored_modes(model):
        change(model)
        if error:
            raise error
    assert modes(model) == before


def test_the_block_may_replace_modules():
    model = network()
    first = model[0]
    with restored_modes(model):
        model.eval()
        model[0] = nn.Identity().eval()
    assert first.training and model.training and not model[0].training


@pytest.mark.parametrize("error", [None, KeyError])
def test_evaluating_restores_modes_and_gradients(error):
    model = network()
    before = modes(model)
    with suppress(KeyError), evaluating(model):
        assert not any(modes(model)) and not torch.is_grad_enabled()
        if error:
            raise error
    assert modes(model) == before and torch.is_grad_enabled()


def test_errors_are_not_hidden():
    for block in (restored_modes, evaluating):
        with pytest.raises(KeyError), block(network()):
            raise KeyError
