"""Weights that store codes, or their positions, are refused where zeros are read or written."""

import pytest
import torch
from torch import nn

from hf_lottery import Mask, Snapshot, error_barrier, prunable

WEIGHT = torch.eye(4)


class Wrapper(torch.Tensor):
    """A tensor that keeps codes of its numbers in tensors of its own, as torchao's do."""

    def __tensor_flatten__(self):
        return [], None


STORED = {
    "sparse_coo": lambda: WEIGHT.to_sparse(),
    "sparse_csr": lambda: WEIGHT.to_sparse_csr(),
    "sparse_csc": lambda: WEIGHT.to_sparse_csc(),
    "sparse_bsr": lambda: WEIGHT.to_sparse_bsr((2, 2)),
    "int8": lambda: WEIGHT.to(torch.int8),
    "uint8": lambda: WEIGHT.to(torch.uint8),
    "float8": lambda: WEIGHT.to(torch.float8_e4m3fn),
    "torchao": lambda: WEIGHT.as_subclass(Wrapper),
}
pytestmark = pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta:UserWarning")
MESSAGE = r"must be a plain tensor of numbers; received '0.weight' (in the layout|of .*codes)"


def layer(weight):
    """Two layers, the first of which has this weight."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    return model


@pytest.mark.parametrize("stored", STORED)
def test_what_is_stored_in_another_way_is_refused(stored):
    model = layer(STORED[stored]())
    calls = [
        lambda: Mask.from_model(model),
        lambda: prunable(model),
        lambda: Mask({"0.weight": WEIGHT > 0}).apply_(model),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=MESSAGE):
            call()


@pytest.mark.parametrize("stored", ["sparse_csr", "int8"])
def test_the_other_layers_can_be_chosen(stored):
    model = layer(STORED[stored]())
    assert list(prunable(model, exclude="^0")) == ["1.weight"]
    Mask({"1.weight": WEIGHT > 0}).apply_(model)
    assert torch.equal(model[1].weight != 0, WEIGHT > 0)


def test_complex_weights_are_plain_but_not_prunable():
    model = layer(WEIGHT * 1j)
    mask = Mask.from_model({"0.weight": model[0].weight})
    assert mask == Mask({"0.weight": WEIGHT > 0})
    mask.apply_(model)
    with pytest.raises(ValueError, match="Nor do complex ones"):
        prunable(nn.Sequential(model[0]))


@pytest.mark.parametrize("stored", ["sparse_coo", "sparse_csr"])
def test_networks_that_are_copied_hold_plain_tensors(stored):
    model = layer(STORED[stored]())
    calls = [lambda: Snapshot.capture(model), lambda: error_barrier(model, layer(WEIGHT), lambda model: 0.0)]
    for call in calls:
        with pytest.raises(ValueError, match=r"received '0.weight' in the layout .* Put 0.weight.to_dense\(\)"):
            call()
