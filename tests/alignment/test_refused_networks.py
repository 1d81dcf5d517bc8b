"""Networks that cannot be matched: numbers that are none, and things that are no networks."""

import copy

import pytest
import torch
from hand_made import network, spec_of
from torch import nn

from hf_lottery import Mask, Snapshot, Ticket, discover
from hf_lottery.alignment import activation_matching, weight_matching
from hf_lottery.symmetry.errors import SymmetryError


@pytest.fixture
def pair():
    source, spec, x = network("mlp")
    return spec, source, copy.deepcopy(source), x


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(("value", "text"), [(float("nan"), "NaN"), (float("inf"), "inf"), (-1e30, r"1e\+30")])
def test_weights_that_are_not_finite(pair, side, value, text):
    spec, source, target, x = pair
    source, target = source.float(), target.float()
    with torch.no_grad():
        (source if side == "source" else target)[2].weight[3, 1] = value
    message = rf"must be finite, and small enough.*; received {text} in '2.weight' of the {side}\. Check"
    states = {"source": source.state_dict(), "target": target.state_dict()}
    for call in (
        lambda: weight_matching(spec, source=source, target=target),
        lambda: weight_matching(spec, **states),
        lambda: activation_matching(spec, source=source, target=target, batches=[x.float()]),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_weight_that_is_not_compared_may_hold_anything(pair):
    spec, source, target, x = pair
    with torch.no_grad():
        source[4].bias[0] = float("nan")  # lies on frozen groups alone
    assert weight_matching(spec, source=source, target=target).permutation.is_identity
    assert activation_matching(spec, source=source, target=target, batches=[x]).permutation.is_identity


def test_activations_that_are_not_finite_name_the_group(pair):
    spec, source, target, x = pair
    x[0] = float("inf")
    with pytest.raises(ValueError, match=r"activations at '2', of group h1, must be finite; received NaN or infinity"):
        activation_matching(spec, source=source, target=target, batches=[x])


class Waves(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last((x.to(torch.complex64) @ self.weight.T).abs())


def test_complex_weights():
    with pytest.raises(SymmetryError, match=r"must be real; received 'weight' of torch.complex64. Write the layer"):
        discover(Waves(), (torch.randn(3, 4),))
    tensors = {"weight": ("h", "in"), "last.weight": ("out", "h"), "last.bias": ("out",)}
    spec = spec_of({"in": (4, (), "input"), "h": 4, "out": (2, (), "output")}, tensors)
    a, b = Waves(), Waves()
    for source, target in ((a, b), (a.state_dict(), b.state_dict())):
        with pytest.raises(ValueError, match="must be real floating numbers; received 'weight' of torch.complex64 in"):
            weight_matching(spec, source=source, target=target)


def test_integers_are_no_weights(pair):
    spec, source, _, _ = pair
    whole = {name: (w * 9).round().to(torch.int8) for name, w in source.state_dict().items()}
    with pytest.raises(ValueError, match=r"received '0.weight' of torch.int8 in the target\. .* without quantisation"):
        weight_matching(spec, source=source, target=whole)
    with pytest.raises(ValueError, match="the source must hold weights to match; received none"):
        weight_matching(spec, source=whole, target=whole)


def test_masks_and_tickets_are_no_networks(pair):
    spec, source, target, x = pair
    mask = Mask({name: w > 0 for name, w in source.named_parameters()})
    ticket = Ticket(mask, Snapshot.capture(source))
    for thing, kind in ((mask, "Mask"), (ticket, "Ticket"), (7, "int"), ("folder", "str")):
        with pytest.raises(TypeError, match=rf"source must be a model or a state dict; received {kind}. .*permutation"):
            weight_matching(spec, source=thing, target=target)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match=rf"target must be a model, which can be run; received {kind}"):
            activation_matching(spec, source=source, target=thing, batches=[x])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="source must be a model, which can be run; received OrderedDict"):
        state = source.state_dict()
        activation_matching(spec, source=state, target=target, batches=[x])  # pyright: ignore[reportArgumentType]


def test_a_match_is_not_called(pair):
    spec, source, target, _ = pair
    match = weight_matching(spec, source=source, target=target)
    mask = Mask({name: w > 0 for name, w in source.named_parameters()})
    with pytest.raises(TypeError, match=r"must not be called; .*match.permutation\(mask\).*permute_\(model, match"):
        match(mask)
    with pytest.raises(TypeError, match="received Ticket. Of a ticket, pass ticket.mask"):
        match.permutation(Ticket(mask, Snapshot.capture(source)))  # pyright: ignore[reportArgumentType]
    assert match.permutation(mask) == mask
