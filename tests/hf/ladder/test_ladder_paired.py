"""Paired intervals: by hand, of targets that share networks, and of the share of a gap."""

import numpy as np
import pytest
from small_ladders import CONV

from hf_lottery.hf.ladder.cells import Ladder
from hf_lottery.hf.ladder.paired import gap_closed, interval

T4 = 2.7764451  # the quantile 0.975 of Student's t with 4 degrees of freedom


def test_interval_by_hand():
    mean, half = interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean == 2.5
    assert half == pytest.approx(3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2, rel=1e-6)  # t(0.975, 3)


def test_interval_of_a_ring_by_hand():
    """The differences from the mean are -4, -3, 4, 5, -2: squares add up to 70, products of neighbours to 18."""
    values = np.array([1.0, 2.0, 9.0, 10.0, 3.0])
    assert interval(values) == pytest.approx((5, T4 * (70 / (5 * 4)) ** 0.5))
    assert interval(values, ring=True) == pytest.approx((5, T4 * ((70 + 2 * 18) / (5 * 2)) ** 0.5))
    across = np.array([1.0, 10.0, 2.0, 9.0, 3.0])  # neighbours differ more than others do
    assert interval(across, ring=True) == interval(across)
    for few in (values[:2], values[:3]):  # too few to know
        assert interval(few, ring=True) == interval(few)


def shared(rng, count):
    """Differences of targets in a ring, half from the target and half from the source."""
    networks = rng.normal(size=count)
    return networks + np.roll(networks, 1)


@pytest.mark.parametrize(("count", "least"), [(5, 0.86), (10, 0.89)])
def test_an_interval_of_a_ring_covers_better(count, least):
    """It cannot reach 95 %: the covariance is estimated from a few numbers."""
    rng, covered = np.random.default_rng(0), {True: 0, False: 0}
    for _ in range(1000):
        values = shared(rng, count)
        halves = {ring: interval(values, ring=ring)[1] for ring in covered}
        assert halves[True] >= halves[False]
        for ring, half in halves.items():
            covered[ring] += abs(values.mean()) <= half
    assert covered[False] < 850 < 1000 * least < covered[True]


def test_independent_targets_are_covered():
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=5) for _ in range(1000)]
    assert 930 < sum(abs(values.mean()) <= interval(values)[1] for values in samples) < 970


@pytest.mark.parametrize("ring", [False, True])
def test_gap_by_hand(ring):
    naive, lth = np.array([10.0, 12.0, 11.0, 10.0, 9.0]), np.array([20.0, 22.0, 21.5, 20.0, 18.5])
    share, low, high = gap_closed(naive + 2.5, naive, lth, ring=ring)
    assert share == pytest.approx(2.5 / (lth - naive).mean()) and low < share < high
    # The ends are the shares r at which the mean of gain - r * whole is just not told from 0.
    for end in (low, high):
        mean, half = interval(2.5 - end * (lth - naive), ring=ring)
        assert abs(mean) == pytest.approx(half, rel=1e-6)
    wild = naive + np.array([5.0, -5.0, 0.0, 9.0, -9.0])
    assert gap_closed(naive, naive, wild, ring=ring) is None
    assert gap_closed(lth, naive, lth, ring=ring) == pytest.approx((1, 1, 1))


def test_gaps_of_a_ring_are_wider():
    rng, widened = np.random.default_rng(1), 0
    for _ in range(200):
        whole = 10 + shared(rng, 6)
        gain, nothing = 0.3 * whole + shared(rng, 6), np.zeros(6)
        share, low, high = gap_closed(gain, nothing, whole)
        ring = gap_closed(gain, nothing, whole, ring=True)
        assert ring[0] == share and ring[1] <= low and high <= ring[2]
        widened += ring[1] < low and high < ring[2]
        for end in ring[1:]:
            mean, half = interval(gain - end * whole, ring=True)
            assert abs(mean) == pytest.approx(half, rel=1e-6)
    assert widened > 100


def test_a_gap_may_be_known_of_independent_targets_alone():
    """Neighbours are alike, so that a ring of them says less."""
    whole = np.array([1.0, 4.0, 9.0, 10.0, 3.0])
    assert gap_closed(whole / 2, 0 * whole, whole, ring=True) is None
    assert gap_closed(whole / 2, 0 * whole, whole) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(("targets", "ring"), [(None, True), (["1", "2"], True), (["1", "3"], False), (["2"], False)])
def test_targets_are_a_ring_if_one_is_the_source_of_another(targets, ring):
    chosen = [] if targets is None else ["--targets", *targets]
    assert Ladder.of([*CONV, "--seeds", "0", "1", "2", "3", *chosen]).ring == ring
