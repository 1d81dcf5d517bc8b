"""The loop over levels, and when a search asks for evidence."""

import weakref
from itertools import chain

import pytest
import torch
from torch import nn

from hf_lottery import (
    Mask,
    Snapshot,
    find_ticket,
    magnitude,
    movement,
    needs,
    prunable,
    random_score,
    saliency,
    uniform,
    wanda,
)
from hf_lottery.pruning.evidence import Evidence
from hf_lottery.training.levels import Level, check_levels, run_levels

SPARSITIES = [0.0, 0.25, 0.5]
MASKS = [Mask({"w": torch.arange(4) >= removed}) for removed in range(3)]
START = Snapshot(0, {"w": torch.ones(4)})


class Calls:
    """Functions for run_levels that write down their calls."""

    def __init__(self):
        self.made, self.masks = [], {0: MASKS[0]}

    def begin(self, number):
        self.made.append(("begin", number))
        return self.masks[number], START

    def train(self, number, mask, start):
        assert mask is self.masks[number] and start is START
        self.made.append(("train", number))
        return f"metrics {number}"

    def next_mask(self, level, sparsity):
        self.made.append(("prune", level.number, sparsity))
        return MASKS[level.number + 1]

    def hand_over(self, number, mask):
        self.made.append(("hand over", number))
        self.masks[number] = mask

    def levels(self, sparsities=SPARSITIES, **options):
        yield from run_levels(
            sparsities,
            begin=self.begin,
            train=self.train,
            next_mask=self.next_mask,
            hand_over=self.hand_over,
            **options,
        )


PER_LEVEL = [
    [("begin", 0), ("train", 0), ("prune", 0, 0.25), ("hand over", 1)],
    [("begin", 1), ("train", 1), ("prune", 1, 0.5), ("hand over", 2)],
    [("begin", 2), ("train", 2)],  # nothing is pruned after the last level
]


def test_the_order_of_calls():
    calls = Calls()
    levels = list(calls.levels())
    assert calls.made == list(chain.from_iterable(PER_LEVEL))
    assert [(level.number, level.sparsity, level.metrics) for level in levels] == [
        (number, sparsity, f"metrics {number}") for number, sparsity in enumerate(SPARSITIES)
    ]
    assert all(level.mask is mask and level.start is START for level, mask in zip(levels, MASKS, strict=True))


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_search_goes_on_from_a_level(first):
    calls = Calls()
    calls.masks = dict(enumerate(MASKS))
    assert [level.number for level in calls.levels(first=first)] == list(range(first, 3))
    assert calls.made == list(chain.from_iterable(PER_LEVEL[first:]))


def test_levels_are_trained_as_they_are_asked_for():
    calls = Calls()
    levels = calls.levels()
    assert not calls.made
    next(levels)
    assert calls.made == PER_LEVEL[0]  # the mask of the next level is handed over before the caller may stop


def test_one_level_is_not_pruned():
    calls = Calls()
    assert len(list(calls.levels([0.0]))) == 1 and calls.made == [("begin", 0), ("train", 0)]


def test_a_level_is_free_before_the_next_one_begins():
    held = []

    def begin(number):
        assert [reference() for reference in held] == [None] * number
        mask, start = Mask({"w": torch.arange(4) >= number}), Snapshot(0, {"w": torch.ones(4)})
        held.append(weakref.ref(start))
        return mask, start

    levels = run_levels(
        SPARSITIES,
        begin=begin,
        train=lambda number, mask, start: None,
        next_mask=lambda level, sparsity: level.mask,
        hand_over=lambda number, mask: None,
    )
    for level in levels:
        assert level.start is held[-1]()
        del level
    assert len(held) == 3


def test_a_level_is_short_as_text():
    start = Snapshot(0, {"w": torch.ones(1000)})
    assert repr(Level(2, MASKS[2], 0.5, {"loss": 0.25}, start)) == "Level(2, sparsity 0.5000, metrics {'loss': 0.25})"
    long = repr(Level(2, MASKS[2], 0.5, {"losses": list(range(1000))}, start))
    assert long.startswith("Level(2, sparsity 0.5000, metrics {'losses': [0, 1, 2,") and len(long) < 300


def test_levels_that_cannot_be_pruned_are_found_before_training():
    weights = {"w": torch.ones(2, 5)}
    check_levels(weights, SPARSITIES, scope=uniform, min_density=0.5)
    with pytest.raises(ValueError, match="level 2 must remove weights; received sparsity 0.5 and then 0.52 of 10"):
        check_levels(weights, [0.0, 0.5, 0.52], scope=uniform, min_density=0.0)
    with pytest.raises(ValueError, match=r"level 2, sparsity 0\.5, cannot be pruned"):
        check_levels(weights, SPARSITIES, scope=uniform, min_density=0.6)


# --- evidence -----------------------------------------------------------------------------------------------------


class Search:
    """A search of two levels that counts trainings and calls for evidence."""

    def __init__(self, score, *, given=True):
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        self.trained = self.asked = 0
        self.levels = lambda: find_ticket(
            self.model,
            self.train,
            within=prunable(self.model),
            levels=2,
            pruning_fraction=0.5,
            score=score,
            evidence=self.evidence if given else None,
        )

    def train(self, model, start):
        self.trained += 1
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    def evidence(self, model):
        self.asked += 1
        weights = prunable(model)
        return {name: Evidence(torch.ones_like(w), torch.ones(1, w.shape[1])) for name, w in weights.items()}


@pytest.mark.parametrize(
    ("score", "missing"),
    [
        (saliency, "gradient"),
        (wanda, "input_norm"),
        (needs("gradient", "input_norm", "start")(lambda w, e: w * e.gradient), "gradient and input_norm"),
    ],
)
def test_a_score_without_its_evidence_is_refused_before_training(score, missing):
    search = Search(score, given=False)
    with pytest.raises(ValueError, match=f"evidence must be given for a score that needs {missing}; received none"):
        search.levels()
    assert not search.trained


def test_an_undeclared_read_is_refused_before_training():
    search = Search(lambda weight, evidence: weight * evidence.gradient)
    with pytest.raises(ValueError, match="reads gradient undeclared"):
        search.levels()
    assert not search.trained and not search.asked


@pytest.mark.parametrize(
    ("score", "asked"),
    [(magnitude, 0), (random_score, 0), (movement, 0), (lambda w, e: w.abs(), 0), (saliency, 2), (wanda, 2)],
)
def test_evidence_is_called_only_for_a_score_that_needs_it(score, asked):
    search = Search(score)
    assert len(list(search.levels())) == 3 and search.trained == 3 and search.asked == asked


def test_start_is_filled_in():
    search = Search(movement, given=False)
    assert [level.mask.kept for level in search.levels()] == [18, 9, 4]
