"""Other units in the same numbers, and what a unit mask says beside numbers."""

import copy

import numpy as np
import pytest
import torch
from hand_made import spec_of
from torch import nn
from torch.nn import functional as F

from hf_lottery import Permutation, discover, keep_sparse, permute_
from hf_lottery.masks.mask import MaskMismatchError
from hf_lottery.structured.unit_choices import choose_units, shuffle_units
from hf_lottery.structured.unit_mask import UnitMask
from hf_lottery.symmetry import SpecMismatchError


def perceptron(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.fixture
def spec():
    return discover(perceptron(), (torch.ones(2, 4, dtype=torch.float64),))


def first(*sizes):
    """Bool rows that keep the first few units of six and five."""
    return [torch.arange(total) < size for total, size in zip((6, 5), sizes, strict=True)]


@pytest.fixture
def mask(spec):
    return UnitMask(dict(zip(spec.free, first(2, 3), strict=True)), spec)


def numbers(mask):
    return {group: kept.sum(dim=-1).tolist() for group, kept in mask.units.items()}


def test_the_highest_stay_in_the_same_numbers(spec, mask):
    scores = {group: torch.arange(kept.numel()).double() for group, kept in mask.units.items()}
    found = choose_units(mask, spec, {**scores, "another": torch.ones(2)})
    assert numbers(found) == numbers(mask) and list(found) == list(mask)
    assert [kept.tolist() for kept in found.units.values()] == [[False] * 4 + [True] * 2, [False] * 2 + [True] * 3]
    equal = choose_units(mask, spec, {group: torch.zeros(kept.shape) for group, kept in mask.units.items()})
    assert equal == found  # of equal ones the first go, as in prune_units


def test_a_shuffle_keeps_the_numbers_and_is_uniform(spec, mask):
    shuffled = [shuffle_units(mask, spec, seed=seed) for seed in range(300)]
    assert all(numbers(found) == numbers(mask) for found in shuffled)
    assert shuffle_units(mask, spec, seed=3) == shuffled[3] != shuffled[4]
    for group, kept in mask.units.items():
        share = torch.stack([found.units[group] for found in shuffled]).double().mean(dim=0)
        assert (share - kept.double().mean()).abs().max() < 0.12  # four standard deviations


def test_nested_units_are_chosen_for_each_of_their_parents():
    spec = spec_of({"in": (2, (), "input"), "head": 3, "unit": (4, ("head",))}, {"weight": ("head unit", "in")})
    kept = torch.tensor([[True, False, True, False]]).repeat(3, 1)
    mask = UnitMask({"unit": kept}, spec)
    assert numbers(shuffle_units(mask, spec, seed=0)) == {"unit": [2, 2, 2]}
    scores = torch.tensor([[4.0, 3, 2, 1], [1, 2, 3, 4], [1, 4, 3, 2]])
    found = choose_units(mask, spec, {"unit": scores}).units["unit"]
    assert found.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]]


def test_what_does_not_fit_is_refused(spec, mask):
    group = next(iter(mask.units))
    scores = {name: torch.zeros(kept.shape) for name, kept in mask.units.items()}
    with pytest.raises(MaskMismatchError, match=r"must have the shape of its units, \[6\]; received \[5\]"):
        choose_units(mask, spec, {**scores, group: torch.zeros(5)})
    with pytest.raises(MaskMismatchError, match="received none. unit_scores"):
        choose_units(mask, spec, {group: scores[group]})
    other = discover(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (torch.ones(2, 4),))
    with pytest.raises(SpecMismatchError, match="must be of the given spec"):
        shuffle_units(mask, other, seed=0)


def trained(model, mask, *, optimizer):
    model, data = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with keep_sparse(model, mask):
        steps = optimizer(model.parameters())
        for _ in range(20):
            inputs = torch.randn(8, 4, generator=data, dtype=torch.float64)
            steps.zero_grad()
            F.cross_entropy(model(inputs), (inputs[:, 0] > 0).long()).backward()
            steps.step()
    return model


@pytest.mark.parametrize(
    "optimizer",
    [lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9), lambda weights: torch.optim.AdamW(weights, 0.01)],
    ids=["sgd", "adamw"],
)
def test_which_units_survive_is_a_choice_of_names(spec, mask, optimizer):
    """A network trains under one unit mask as its copy in another order does under any other of the same numbers.

    Both orders of a network that was drawn at random are equally likely, so a mask that knows nothing of the network
    cannot be better than random units.
    """
    other = shuffle_units(mask, spec, seed=5)
    assert other != mask
    order = {group: np.empty(kept.numel(), dtype=np.int64) for group, kept in mask.units.items()}
    for group, entry in order.items():  # new[i] = old[p[i]]: kept units come from kept ones
        for stays in (True, False):
            to, source = ((units.units[group] == stays).nonzero()[:, 0].numpy() for units in (other, mask))
            entry[to] = source
    permutation = Permutation(spec, order)
    assert permutation(mask) == other and permutation(mask).units.keys() == other.units.keys()
    network = perceptron(7)
    moved = copy.deepcopy(network)
    permute_(moved, permutation)
    inputs = torch.randn(16, 4, dtype=torch.float64)
    first, second = trained(network, mask, optimizer=optimizer), trained(moved, other, optimizer=optimizer)
    assert torch.allclose(first(inputs), second(inputs), rtol=0, atol=1e-12)
    assert not torch.allclose(first(inputs), trained(network, other, optimizer=optimizer)(inputs), atol=1e-3)
