"""Selection where the scores are: the mask of a stable sort, and nothing but counts and the mask leaves the device."""

import pytest
import torch
from elsewhere import Elsewhere, Fetches
from selection_cases import DTYPES, assert_same, kinds, reference, split

from hf_lottery import Mask, magnitude, n_of_m, prune, score_weights, uniform
from hf_lottery.pruning import chunks
from hf_lottery.pruning.histogram_selection import remove_lowest_where_it_is


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 256)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_a_stable_sort(dtype):
    generator = torch.Generator().manual_seed(0)
    for kind, values in kinds(1000, generator).items():
        scores = split(values, dtype)
        total = sum(score.numel() for score in scores.values())
        for remove in (0, 1, total // 3, int(0.9 * total), total):
            assert_same(remove_lowest_where_it_is(scores, remove), reference(scores, remove), (kind, remove))


def test_agrees_with_a_stable_sort_when_only_some_compete():
    generator = torch.Generator().manual_seed(1)
    for share in (0.001, 0.5, 1.0):
        for kind, values in kinds(1000, generator).items():
            scores = split(values, torch.float32)
            alive = {name: torch.rand(s.shape, generator=generator) < share for name, s in scores.items()}
            left = sum(int(entry.sum()) for entry in alive.values())
            for remove in {0, min(left, 1), left // 2, left}:
                result = remove_lowest_where_it_is(scores, remove, alive=alive)
                assert_same(result, reference(scores, remove, alive), (kind, share, remove))


def test_a_nan_is_refused_by_name_unless_it_does_not_compete():
    scores = {"a": torch.ones(3), "b": torch.tensor([1.0, torch.nan, -torch.nan])}
    with pytest.raises(ValueError, match=r"scores of 'b' must be numbers; received NaN, 2 times among 3 values"):
        remove_lowest_where_it_is(scores, 1)
    alive = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, False, False])}
    assert remove_lowest_where_it_is(scores, 3, alive=alive)["b"].tolist() == [False] * 3


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize(
    ("scope", "sparsity"),
    [(None, 0.7), (uniform, 0.7), (n_of_m(1, 4), 0.75), (n_of_m(2, 16), 0.875), (n_of_m(1, 2, axis=0), 0.5)],
)
def test_scores_on_a_device_stay_there(scope, sparsity, halved):
    generator = torch.Generator().manual_seed(2)
    weights = {"b": torch.randn(96, 64, generator=generator), "a": torch.randn(16, 32, generator=generator).bfloat16()}
    weights["b"][::3] = 0.5
    options = {"scope": scope} if scope else {}
    if halved:
        entries = {name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()}
        entries["b"][2::3, 1::8] = False
        options["within"] = Mask(entries)
    expected = prune(score_weights(weights, magnitude), sparsity, **options)
    with Fetches() as fetched:
        there = {name: Elsewhere(weight) for name, weight in weights.items()}
        mask = prune(score_weights(there, magnitude), sparsity, **options)
    assert mask == expected
    assert not [tensor for tensor in fetched.tensors if tensor[0].is_floating_point]
    assert sum(size for dtype, size in fetched.tensors if dtype == torch.bool) == mask.weights
    assert fetched.numbers < 200  # a few for each tensor or chunk, and a bisection
