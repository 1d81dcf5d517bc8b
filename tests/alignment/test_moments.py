"""Moments: float32 products lose nothing that matters, in whatever layout, order and blocks they come."""

import itertools

import numpy as np
import pytest
import torch

from hf_lottery.alignment import moments
from hf_lottery.alignment.moments import Moments, observe


def correlated(batches, dimension=-1):
    sums = Moments(batches[0][0].shape[dimension])
    for target, source in batches:
        sums.add(observe(target, dimension), observe(source, dimension))
    found = sums.correlation()
    assert found is not None
    return found


def drawn(*shapes, dtype=torch.float32):
    """Draw pairs of batches that share something, with means that lie far from zero and move from batch to batch."""
    pairs = []
    for n, shape in enumerate(shapes):
        x, y = torch.randn(2, *shape, dtype=torch.float64)
        pairs.append([(x + 30 + n).to(dtype), (y + 0.5 * x - 50 + 2 * n).to(dtype)])
    return pairs


def of_numpy(batches, dimension=-1):
    rows = (torch.cat([b[k].movedim(dimension, -1).flatten(0, -2) for b in batches]).double().numpy() for k in (0, 1))
    target, source = rows
    n = target.shape[1]
    return np.corrcoef(target.T, source.T)[:n, n:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_they_are_those_of_numpy(dtype):
    batches = drawn((40, 7), (3, 7), (1, 7), (90, 7), dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(correlated(batches), of_numpy(batches), atol=tolerance)


@pytest.mark.parametrize("shape", [(4, 6, 5, 5), (1, 6, 9), (3, 6, 2, 2, 2)])
def test_maps_in_any_order_in_memory(shape):
    batches = drawn(shape, shape)
    expected = of_numpy(batches, 1)
    np.testing.assert_allclose(correlated(batches, 1), expected, atol=2e-6)
    last = [[x.movedim(1, -1).contiguous().movedim(-1, 1) for x in pair] for pair in batches]
    np.testing.assert_allclose(correlated(last, 1), expected, atol=2e-6)
    mixed = [[a, b] for (a, _), (_, b) in zip(batches, last, strict=True)]
    np.testing.assert_allclose(correlated(mixed, 1), expected, atol=2e-6)


def test_the_order_of_batches_changes_float64_rounding_alone():
    batches = drawn((40, 7), (3, 7), (90, 7))
    first, *others = (correlated(order) for order in itertools.permutations(batches))
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-12)


def test_blocks_give_the_same(monkeypatch):
    batches = drawn((40, 7), (30, 7))
    whole = correlated(batches)
    monkeypatch.setattr(moments, "_BLOCK", 20)
    monkeypatch.setattr(moments, "_PIECE", 8)
    np.testing.assert_allclose(correlated(batches), whole, atol=1e-6)
    maps = drawn((4, 7, 5, 5))
    np.testing.assert_allclose(correlated(maps, 1), of_numpy(maps, 1), atol=2e-6)


def test_only_a_block_of_a_product_is_held_in_float32(monkeypatch):
    monkeypatch.setattr(moments, "_BLOCK", 1 << 10)
    largest, product = [], torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: largest.append(len(a) * b.shape[1]) or product(a, b))
    correlated(drawn((9, 128)))
    assert len(largest) == 16 and max(largest) == 1 << 10


def test_a_unit_that_is_constant_or_not_finite():
    (target, source), *_ = batches = drawn((40, 5), (40, 5))
    for x, _ in batches:
        x[:, 2] = 0.1
    found = correlated(batches)
    assert (found[2] == 0).all() and np.isfinite(found).all()
    source[3, 1] = torch.inf
    assert np.isnan(correlated([(target, source)])[:, 1]).all()
    source[3, 1] = 1e25  # its square is too large for float32
    assert np.isnan(correlated([(target, source)])[:, 1]).all()


def test_other_numbers_of_rows_are_no_pairs():
    sums = Moments(3)
    sums.add(observe(torch.randn(4, 3), -1), observe(torch.randn(5, 3), -1))
    assert sums.correlation() is None
    sums = Moments(3)
    sums.add(observe(torch.randn(0, 3), -1), observe(torch.randn(0, 3), -1))
    assert sums.correlation() is None


@pytest.mark.parametrize(
    "dtype, mean, spread", [(torch.float32, 1e3, 1e-2), (torch.float32, 1e4, 3e-2), (torch.float64, 1e4, 1e-4)]
)
def test_units_far_from_zero_vary(dtype, mean, spread):
    x = torch.randn(4000, 6, dtype=torch.float64)
    batches = [(mean + spread * x.roll(1, 1)[k::2], mean + spread * x[k::2]) for k in (0, 1)]
    found = correlated([[part.to(dtype) for part in pair] for pair in batches])
    assert found.argmax(1).tolist() == [5, 0, 1, 2, 3, 4] and found.max(1).min() > 0.95


@pytest.mark.parametrize("value", [0.1, -7.7e-3, 1e4 + 0.3])
@pytest.mark.parametrize("rows", [100, 4097, 200_000])
def test_units_that_never_vary_have_no_correlation(value, rows):
    constant, other = torch.full((rows, 2), value), torch.randn(rows, 2)
    assert not correlated([(constant, other), (constant[:7], other[:7])]).any()
