"""Coordinate descent: its starts, and what a step costs; and the assignment of one group."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hand_made import NETWORKS, planted

from hf_lottery.alignment import matching
from hf_lottery.alignment.assignment import assign

weight_matching = partial(matching.weight_matching, residual=True)  # the hand-made networks are to be matched whole


@pytest.mark.parametrize("name", NETWORKS)
def test_the_inward_sweep_finds_what_is_planted(name):
    for seed in range(8):
        source, target, spec, _, p = planted(name, seed)
        found = weight_matching(spec, source=source, target=target)
        assert found.permutation == p and len(found.report.objective) <= 5
        inward, swept = found.report.objective[1], found.report.objective[-1]
        assert inward == pytest.approx(swept) or name != "experts"


def test_the_start_of_the_paper_can_be_chosen():
    source, target, spec, _, p = planted("experts", 7)
    pair = {"source": source, "target": target}
    assert weight_matching(spec, **pair).permutation == p
    assert weight_matching(spec, start=spec.identity(), **pair).permutation != p
    assert weight_matching(spec, start=spec.identity(), restarts=1, **pair).permutation == p  # inward, as a restart


def test_frozen_inner_groups_cost_nothing(monkeypatch):
    """A rotary head dimension lies inside the head but never moves: no product for every destination."""
    source, target, spec, _, _ = planted("gqa")
    monkeypatch.setattr(torch, "einsum", None)
    assert weight_matching(spec.freeze("qd", "rotary"), source=source, target=target).report.converged


def test_assign_finds_the_optimum():
    generator = np.random.default_rng(0)
    for _ in range(20):
        score = generator.normal(size=(5, 5))
        best = max(score[np.arange(5), p].sum() for p in map(list, itertools.permutations(range(5))))
        assert score[np.arange(5), assign(score)].sum() == pytest.approx(best)
    order = generator.permutation(80)  # large enough for the reduction
    assert np.array_equal(assign(np.eye(80)[order] * 7 + generator.normal(size=(80, 1))), np.argsort(np.argsort(order)))
