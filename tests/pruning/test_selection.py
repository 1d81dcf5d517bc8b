"""Selection against a stable sort of (score, name, position), on data that is kind to a sample and data that is not."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from selection_cases import DTYPES, assert_same, kinds, reference, split

from hf_lottery.pruning import chunks
from hf_lottery.pruning import selection as select
from hf_lottery.pruning.selection import keep_highest_of_groups, remove_lowest


@pytest.fixture
def small_steps(monkeypatch):
    """Chunks and samples so small that a few thousand scores need several chunks, and brackets miss and overflow."""
    monkeypatch.setattr(select, "CHUNK", 256)
    monkeypatch.setattr(chunks, "CHUNK", 256)
    monkeypatch.setattr(select, "_SAMPLE", 64)


@pytest.fixture
def passes(monkeypatch):
    """The low and high ends of every pass over the scores."""
    seen, look = [], select._Cut.look
    monkeypatch.setattr(
        select._Cut, "look", lambda cut, low, high, **kw: (seen.append((low, high)), look(cut, low, high, **kw))[1]
    )
    return seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_a_stable_sort_on_any_data(small_steps, dtype):
    generator = torch.Generator().manual_seed(0)
    for kind, values in kinds(3000, generator).items():
        scores = split(values, dtype)
        total = sum(score.numel() for score in scores.values())
        for remove in (0, 1, 17, total // 3, total // 2, int(0.9 * total), total - 1, total):
            result = remove_lowest(scores, remove)
            assert_same(result, reference(scores, remove), (kind, remove))


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(dtype, marks=() if dtype is torch.bfloat16 else pytest.mark.slow) for dtype in DTYPES],
    ids=str,
)
def test_agrees_with_a_stable_sort_when_only_some_compete(small_steps, dtype):
    generator = torch.Generator().manual_seed(1)
    for share in (0.001, 0.1, 0.5, 1.0):
        for values in kinds(2000, generator).values():
            scores = split(values, dtype)
            alive = {name: torch.rand(s.shape, generator=generator) < share for name, s in scores.items()}
            left = sum(int(entry.sum()) for entry in alive.values())
            for remove in (0, min(left, 1), left // 2, left):
                assert_same(remove_lowest(scores, remove, alive=alive), reference(scores, remove, alive))


def test_random_small_cases():
    generator = torch.Generator().manual_seed(2)
    for case in range(150):
        sizes = torch.randint(0, 9, (1 + case % 4, 2), generator=generator).tolist()
        scores = {
            f"w{i * 7 % 5}": torch.randint(-2, 3, s, generator=generator).to(DTYPES[case % 4])
            for i, s in enumerate(sizes)
        }
        total = sum(score.numel() for score in scores.values())
        remove = int(torch.randint(0, total + 1, (), generator=generator))
        assert_same(remove_lowest(scores, remove), reference(scores, remove))


def test_ordinary_data_takes_one_pass_and_a_misleading_sample_a_few_more(passes):
    scores = {"a": torch.randn(1_000_000, generator=torch.Generator().manual_seed(3))}
    remove_lowest(scores, 800_000)
    assert len(passes) == 1
    misleading = scores["a"].clone()
    misleading[:: 1_000_000 // select._SAMPLE | 1] = -100
    passes.clear()
    keep = remove_lowest({"a": misleading}, 500_000)["a"]
    assert torch.equal(keep, misleading > misleading.sort().values[499_999])
    assert 2 <= len(passes) <= 5


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_the_sample_is_as_large_where_few_compete(passes, share):
    generator = torch.Generator().manual_seed(3)
    scores = {"a": torch.randn(2_000_000, generator=generator)}
    alive = {"a": torch.rand(2_000_000, generator=generator) < share}
    keep = remove_lowest(scores, 1000, alive=alive)["a"]
    assert len(passes) == 1 and int(keep.sum()) == int(alive["a"].sum()) - 1000


def test_a_sorted_million_of_each_dtype_is_cut_at_its_rank():
    for dtype in DTYPES:
        values = torch.linspace(-3, 3, 1_000_003, dtype=torch.float64).to(dtype)
        keep = remove_lowest({"a": values}, 700_001)["a"]
        assert not keep[:700_001].any() and keep[700_001:].all()


def test_double_precision_is_not_narrowed_even_beside_single():
    close = 1 + torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64) * 1e-12
    keep = remove_lowest({"a": torch.ones(1), "b": close}, 2)
    assert keep["a"].tolist() == [False] and keep["b"].tolist() == [True, False, True]


def test_the_first_of_equal_scores_go():
    keep = remove_lowest({"b": torch.tensor([1.0, 2.0, 1.0]), "a": torch.tensor([1.0, 0.0])}, 3)
    assert keep["a"].tolist() == [False, False] and keep["b"].tolist() == [False, True, True]


def test_the_order_of_the_mapping_does_not_matter_and_is_kept():
    scores = split(torch.randn(300, generator=torch.Generator().manual_seed(4)).round(), torch.float32)
    backwards = dict(reversed(scores.items()))
    result, other = remove_lowest(scores, 100), remove_lowest(backwards, 100)
    assert list(other) == list(backwards)
    assert_same(result, {name: other[name] for name in scores})


def test_scores_that_require_grad_are_read_and_left_alone():
    score = torch.tensor([2.0, 1.0], requires_grad=True)
    assert remove_lowest({"a": score}, 1)["a"].tolist() == [True, False]
    assert score.grad is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_is_refused_by_name_beside_the_largest_values(dtype):
    extreme = torch.tensor([torch.finfo(dtype).max, -math.inf, math.inf, torch.finfo(dtype).tiny], dtype=dtype)
    scores = {
        "fine": extreme.repeat(50),
        "broken": torch.cat([extreme.repeat(50), torch.tensor([math.nan], dtype=dtype)]),
    }
    remove_lowest({"fine": scores["fine"]}, 100)
    for remove in (0, 100):
        with pytest.raises(ValueError, match=r"scores of 'broken' must be numbers; received NaN, 1 times among 201"):
            remove_lowest(scores, remove)


def test_a_nan_that_does_not_compete_is_no_error():
    scores, alive = {"a": torch.tensor([math.nan, 2.0, 1.0])}, {"a": torch.tensor([False, True, True])}
    assert remove_lowest(scores, 1, alive=alive)["a"].tolist() == [False, True, False]
    assert keep_highest_of_groups(scores, 1, 3, alive=alive)["a"].tolist() == [False, True, False]


@pytest.mark.parametrize("remove", [-1, 4])
def test_a_count_out_of_range_is_refused(remove):
    with pytest.raises(ValueError, match=rf"must be from 0 to 3, the number of competing weights; received {remove}\."):
        remove_lowest({"a": torch.zeros(5)}, remove, alive={"a": torch.tensor([True, True, False, True, False])})


def test_nothing_that_competes_is_nothing_to_keep():
    assert remove_lowest({}, 0) == {}
    assert remove_lowest({"a": torch.empty(0)}, 0)["a"].shape == (0,)
    assert (
        remove_lowest({"a": torch.ones(2)}, 0, alive={"a": torch.tensor([False, False])})["a"].tolist() == [False] * 2
    )


@pytest.mark.parametrize("n, m", [(1, 2), (2, 4), (3, 4), (4, 4), (1, 7), (500, 1000)])
def test_groups_agree_with_a_stable_sort_within_each(small_steps, n, m):
    generator = torch.Generator().manual_seed(5)
    wide = torch.randn(12, 2 * m, generator=generator).round().bfloat16()
    scores = {
        "plain": wide.clone(),
        "transposed": torch.randn(m, 3, 80 // m + 4, generator=generator).round().movedim(0, -1),
    }
    for alive in (None, {name: torch.ones(s.shape, dtype=torch.bool) for name, s in scores.items()}):
        if alive is not None:
            alive["plain"][:, : m - n] = False
        for name, keep in keep_highest_of_groups(scores, n, m, alive=alive).items():
            groups = scores[name].reshape(-1, m)
            living = None if alive is None else alive[name].reshape(-1, m)
            for index, group in enumerate(groups):
                one = None if living is None else {"g": living[index]}
                remove = m - n if one is None else int(one["g"].sum()) - n
                assert torch.equal(keep.reshape(-1, m)[index], reference({"g": group}, remove, one)["g"])


def test_a_group_with_too_few_left_is_refused_by_name():
    alive = {"a": torch.tensor([True, True, False, True])}
    with pytest.raises(
        ValueError, match=r"every 2 consecutive weights of 'a' must have 2 left to keep; received .* 1\."
    ):
        keep_highest_of_groups({"a": torch.ones(4)}, 2, 2, alive=alive)


def memory_cases():
    """Every kind of data in every dtype; quick are those in which each occurs once."""
    kinds = ("normal", "ties", "equal", "alive")
    quick = set(zip(DTYPES, kinds, strict=True))
    return [
        pytest.param(*case, marks=() if case in quick else pytest.mark.slow)
        for case in itertools.product(DTYPES, kinds)
    ]


@pytest.mark.parametrize(("dtype", "kind"), memory_cases())
def test_memory_with_the_mask_is_at_most_one_and_a_fifth_bytes_a_weight(dtype, kind):
    n, generator = 8_000_000, torch.Generator().manual_seed(6)
    values = torch.full((n,), 0.25) if kind == "equal" else torch.randn(n, generator=generator)
    values = (values * 4).round() if kind == "ties" else values
    scores = {"a": values[: n // 2].to(dtype), "b": values[n // 2 :].to(dtype)}
    alive = {name: torch.rand(n // 2, generator=generator) < 0.5 for name in scores} if kind == "alive" else None
    tracemalloc.start()  # sees numpy; the tensors of a chunk, which it does not, are freed with the chunk
    try:
        keep = remove_lowest(scores, n // 4, alive=alive)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(int(np.count_nonzero(entry.numpy())) for entry in keep.values()) == (
        n - n // 4 if alive is None else sum(int(entry.sum()) for entry in alive.values()) - n // 4
    )
    assert peak <= (1.3 if dtype is torch.float64 else 1.2) * n  # with the mask
