"""prune() against a greedy reference, and every scope with every option."""

import math
import warnings
from fractions import Fraction
from itertools import permutations

import pytest
import torch

from hf_lottery import erk, global_ranking, n_of_m, prune, uniform
from hf_lottery.masks.mask import Mask, MaskMismatchError
from hf_lottery.pruning.scopes import PruneRequest

SHAPES = {"conv": (8, 4, 3, 3), "fc": (12, 16), "head": (4, 12), "bias": (12,), "empty": (0, 4)}
LEVELS = (0.0, 0.2, 0.36, 0.5, 0.75, 0.9)


def random_scores(seed, *, shapes=SHAPES, ties=True):
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: (4 * score).round() if ties else score for name, score in scores.items()}


def total(scores):
    return sum(score.numel() for score in scores.values())


def gone(mask):
    return {name: int((~entry).sum()) for name, entry in mask.items()}


def greedy(scores, remove, floors, within=None):
    """Weight by weight, lowest first, passing over those of a tensor at its floor."""
    keep = {
        n: torch.ones(s.shape, dtype=torch.bool) if within is None else within[n].clone() for n, s in scores.items()
    }
    left = {name: int(entry.sum()) for name, entry in keep.items()}
    order = sorted(
        (value, name, position)
        for name, score in scores.items()
        for position, value in enumerate(score.flatten().tolist())
        if keep[name].view(-1)[position]
    )
    for _, name, position in order:
        if remove and left[name] > floors[name]:
            keep[name].view(-1)[position] = False
            left[name], remove = left[name] - 1, remove - 1
    return Mask(keep)


def floors_of(scores, density):
    return {name: math.ceil(Fraction(str(density)) * score.numel()) for name, score in scores.items()}


@pytest.mark.parametrize("min_density", [0.0, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("ties", [True, False])
def test_global_is_the_greedy_rule(ties, min_density):
    for seed in range(5):
        scores = random_scores(seed, ties=ties)
        scores["conv"] = scores["conv"] - 1.5  # this one hits its floor first
        floors = floors_of(scores, min_density)
        first = prune(scores, 0.3, min_density=min_density)
        assert first == greedy(scores, round(0.3 * total(scores)), floors)
        later = {name: -score.roll(1) for name, score in scores.items()}
        second = prune(later, 0.6, min_density=min_density, within=first)
        assert second == greedy(later, round(0.6 * total(scores)) - sum(gone(first).values()), floors, first)
        assert sum(gone(second).values()) == round(0.6 * total(scores))


@pytest.mark.parametrize("sparsity", LEVELS)
def test_uniform_gives_every_tensor_its_own_exact_count(sparsity):
    scores = random_scores(0)
    mask = prune(scores, sparsity, scope=uniform)
    assert gone(mask) == {name: round(sparsity * score.numel()) for name, score in scores.items()}
    assert mask["fc"].equal(prune({"fc": scores["fc"]}, sparsity)["fc"])


def erk_quota(scores, keep, left):
    """Densities c * sum / product, at most what is left, with c found by bisection, in exact fractions."""
    raw = {n: Fraction(sum(s.shape), max(s.numel(), 1)) for n, s in scores.items()}
    quota = lambda c: {n: min(c * raw[n] * scores[n].numel(), Fraction(left[n])) for n in scores}  # noqa: E731
    low, high = Fraction(0), Fraction(10**4)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(quota(middle).values()) <= keep else (low, middle)
    return quota(low)


@pytest.mark.parametrize("sparsity", LEVELS)
def test_erk_follows_the_formula_and_is_exact_in_total(sparsity):
    scores = random_scores(1)
    mask = prune(scores, sparsity, scope=erk)
    assert sum(gone(mask).values()) == round(sparsity * total(scores))
    quota = erk_quota(
        scores, total(scores) - round(sparsity * total(scores)), {n: s.numel() for n, s in scores.items()}
    )
    for name, entry in mask.items():
        assert abs(int(entry.sum()) - quota[name]) < 1
    for name, score in scores.items():
        if score.numel():
            assert mask[name].equal(greedy({name: score}, gone(mask)[name], {name: 0})[name])


def test_erk_densities_of_a_known_network():
    scores = {"a": torch.rand(10, 10), "b": torch.rand(10, 10), "c": torch.rand(10, 110)}
    mask = prune(scores, 0.2, scope=erk)  # 1040 in proportion 20 : 20 : 120 would be 130, 130, 780
    assert {name: int(entry.sum()) for name, entry in mask.items()} == {"a": 100, "b": 100, "c": 840}
    mask = prune(scores, 0.9, scope=erk)  # 130 weights in proportion 20 : 20 : 120
    assert {name: int(entry.sum()) for name, entry in mask.items()} == {"a": 16, "b": 16, "c": 98}


def test_erk_gives_equal_remainders_to_the_first_names():
    scores = {name: torch.rand(3, 3) for name in "dbca"}
    mask = prune(scores, 0.5, scope=erk)  # 18 stay of 36: 4.5 each
    assert {name: int(entry.sum()) for name, entry in mask.items()} == {"d": 4, "b": 5, "c": 4, "a": 5}


def test_erk_within_keeps_what_a_tensor_has_and_takes_from_the_others():
    scores = {"a": torch.rand(10, 10), "b": torch.rand(10, 10)}
    within = Mask({"a": torch.arange(100).view(10, 10) < 20, "b": torch.ones(10, 10, dtype=torch.bool)})
    mask = prune(scores, 0.5, scope=erk, within=within)
    assert {name: int(entry.sum()) for name, entry in mask.items()} == {"a": 20, "b": 80}


@pytest.mark.parametrize("axis, shape", [(1, (6, 8)), (0, (8, 6)), (-1, (3, 5, 8)), (1, (5, 8, 3, 3)), (0, (8, 0))])
@pytest.mark.parametrize("n, m", [(1, 2), (2, 4), (3, 4), (8, 8), (1, 8)])
def test_n_of_m_keeps_exactly_n_highest_of_every_group(n, m, axis, shape):
    score = torch.randn(shape, generator=torch.Generator().manual_seed(2)).mul(2).round()
    mask = prune({"w": score, "v": torch.rand(8, 8)}, 1 - n / m, scope=n_of_m(n, m, axis=axis))
    groups, kept = (t.movedim(axis, -1).reshape(-1, m) for t in (score, mask["w"]))
    assert (kept.sum(1) == n).all()
    for group, keep in zip(groups, kept, strict=True):
        assert keep.equal(greedy({"g": group}, m - n, {"g": 0})["g"])


def test_n_of_m_runs_along_the_input_axis():
    score = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert prune({"w": score}, 0.5, scope=n_of_m(1, 2))["w"].tolist() == [[False, True], [False, True]]
    assert prune({"w": score}, 0.5, scope=n_of_m(1, 2, axis=0))["w"].tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("scope", [global_ranking, uniform, erk])
@pytest.mark.parametrize("min_density", [0.0, 0.04])
def test_levels_are_nested_and_equal_to_one_shot(scope, min_density):
    scores, mask = random_scores(3), None
    for sparsity in LEVELS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            before, mask = mask, prune(scores, sparsity, scope=scope, min_density=min_density, within=mask)
            assert mask == prune(scores, sparsity, scope=scope, min_density=min_density)
        assert before is None or mask & before == mask


@pytest.mark.parametrize("first", [global_ranking, uniform, erk, n_of_m(3, 4)])
@pytest.mark.parametrize("second", [global_ranking, uniform, erk, n_of_m(1, 4)])
def test_every_scope_continues_what_every_other_began(first, second):
    shapes = {"conv": (8, 4, 3, 3), "fc": (12, 16)}
    scores, later = random_scores(4, shapes=shapes), random_scores(5, shapes=shapes)
    for min_density in (0.0, 0.1):
        start = prune(scores, 0.25, scope=first, min_density=min_density)
        try:
            mask = prune(later, 0.75, scope=second, min_density=min_density, within=start)
        except ValueError as error:  # a group of four that the first scope emptied
            assert second not in (global_ranking, uniform, erk)
            assert "4 consecutive weights of" in str(error)
            continue
        assert mask & start == mask
        assert sum(gone(mask).values()) == round(0.75 * total(scores))
        assert all(entry.sum() >= min_density * entry.numel() for entry in mask.values())


def test_dead_weights_go_first_within_a_group_even_below_every_score():
    score = torch.tensor([[-math.inf, -math.inf, 5.0, -math.inf]])
    within = Mask({"w": torch.tensor([[True, True, False, True]])})
    mask = prune({"w": score}, 0.5, scope=n_of_m(2, 4), within=within)
    assert mask["w"].tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("scope", [global_ranking, uniform, erk])
def test_the_order_of_the_mapping_does_not_matter_and_is_kept(scope):
    scores = random_scores(6, shapes={"c": (4, 4), "a": (4, 6), "b": (2, 8)})
    masks = [prune({name: scores[name] for name in order}, 0.6, scope=scope) for order in permutations(scores)]
    assert all(mask == masks[0] for mask in masks)
    assert [tuple(mask) for mask in masks] == list(permutations(scores))


def test_a_scope_of_your_own_is_a_function_of_the_request():
    def per_block(request: PruneRequest):
        keep = {}
        for block in {name.split(".")[0] for name in request.scores}:
            keep |= global_ranking(request.only([name for name in request.scores if name.startswith(block)]))
        return keep

    scores = random_scores(7, shapes={"x.fc": (4, 5), "y.fc": (4, 5), "x.out": (5, 4), "y.out": (5, 4)})
    mask = prune(scores, 0.7, scope=per_block, min_density=0.1, within=prune(scores, 0.2, scope=uniform))
    assert list(mask) == list(scores)
    for block in "xy":
        assert sum(n for name, n in gone(mask).items() if name.startswith(block)) == 28


def test_a_fifth_of_ten_equal_weights_is_two():
    assert prune({"w": torch.ones(10)}, 0.2)["w"].tolist() == [False] * 2 + [True] * 8
    mask = prune({"b": torch.ones(2), "a": torch.ones(3)}, 0.4)
    assert mask["a"].tolist() == [False, False, True] and mask["b"].all()


def test_min_density_is_the_decimal_it_is_written_as():
    # In floating point 0.07 * 100 > 7, and a floor of 8 would contradict a sparsity of 0.93.
    assert prune({"w": torch.rand(100)}, 0.93, min_density=0.07).kept == 7
    assert prune({"w": torch.rand(31), "v": torch.rand(100) + 1}, 0.5, min_density=0.1)["w"].sum() == 4


def test_a_tensor_left_without_weights_is_a_warning_at_the_caller():
    scores = {"a": torch.zeros(2), "b": torch.ones(2), "c": torch.zeros(1), "empty": torch.empty(0)}
    with pytest.warns(UserWarning, match=r"^no weight is left in 'a', 'c'\. Pass min_density") as caught:
        prune(scores, 0.6)
    assert [warning.filename for warning in caught] == [__file__]
    prune(scores, 0.4, min_density=0.5)  # warnings are errors


W = {"w": torch.rand(4, 5), "v": torch.rand(10, 8)}


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"sparsity": 1.0}, ValueError, r"^sparsity must be in \[0, 1\); received 1\.0\. Pass a fraction"),
        ({"sparsity": -0.1}, ValueError, r"^sparsity must be in \[0, 1\); received -0\.1\."),
        ({"sparsity": math.nan}, ValueError, r"^sparsity must be in \[0, 1\); received nan\."),
        ({"sparsity": True}, TypeError, r"^sparsity must be a number; received True\."),
        ({"sparsity": "0.5"}, TypeError, r"^sparsity must be a number; received '0\.5'\."),
        ({"min_density": 1.5}, ValueError, r"^min_density must be in \[0, 1\]; received 1\.5\."),
        ({"min_density": False}, TypeError, r"^min_density must be a number; received False\."),
        ({"scores": {}}, ValueError, r"^scores must hold at least one weight; received 0 tensors without elements\."),
        ({"scores": {"w": torch.empty(0)}}, ValueError, r"at least one weight; received 1 tensors without elements\."),
        (
            {"scores": {"w": torch.ones(2, dtype=torch.int64)}},
            TypeError,
            r"scores of 'w' must be a floating tensor; received torch\.int64\.",
        ),
        ({"scores": {"w": [1.0]}}, TypeError, r"scores of 'w' must be a floating tensor; received list\."),
        (
            {"scores": {"w": torch.tensor([math.nan, 1.0])}},
            ValueError,
            r"scores of 'w' must be numbers; received NaN, 1 times",
        ),
        (
            {"min_density": 0.6},
            ValueError,
            r"leave the 60 weights that min_density protects, 48 of them in 'v'; received 0\.5, which removes 50 of",
        ),
        (
            {"min_density": 0.6, "scope": uniform},
            ValueError,
            r"sparsity of 'w' must leave the 12 weights .*received 0\.5, which removes 10 of 20",
        ),
        (
            {"min_density": 0.6, "scope": n_of_m(1, 2, axis=0)},
            ValueError,
            r"at most 1/2 for n_of_m\(1, 2\); it protects 12 weights of 'w', but only 10 stay",
        ),
        (
            {"sparsity": 0.4, "scope": n_of_m(1, 2)},
            ValueError,
            r"sparsity of n_of_m\(1, 2\) must be 1 - 1/2 = 0\.5; received 0\.4\.",
        ),
        (
            {"scope": n_of_m(1, 2)},
            ValueError,
            r"'w' must have at least two axes, and 2 must divide its length on axis 1; received shape \[4, 5\]",
        ),
        (
            {"scores": {"b": torch.rand(4)}, "scope": n_of_m(1, 2, axis=0)},
            ValueError,
            r"'b' must have at least two axes, .* received shape \[4\]",
        ),
        ({"scope": n_of_m(1, 2, axis=2)}, ValueError, r"'w' must .* axis 2; received shape \[4, 5\]"),
    ],
)
def test_an_error_says_what_was_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        prune(**{"scores": W, "sparsity": 0.5, **arguments})


@pytest.mark.parametrize("n, m", [(0, 4), (5, 4), (-1, 2)])
def test_n_of_m_must_keep_some_of_m(n, m):
    with pytest.raises(ValueError, match=rf"^n_of_m must keep from 1 to m weights; received n={n}, m={m}\."):
        n_of_m(n, m)


HALF = Mask({"w": torch.zeros(4, 5, dtype=torch.bool), "v": torch.arange(80).view(10, 8) >= 30})


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (
            {"sparsity": 0.3},
            ValueError,
            r"2 tensors must be at least 0\.5, because `within` removed 50; received 0\.3, which removes 30 of 100",
        ),
        ({"sparsity": 0.3, "scope": erk}, ValueError, r"sparsity of 2 tensors must be at least 0\.5"),
        (
            {"scope": uniform},
            ValueError,
            r"sparsity of 'w' must be at least 1, because `within` removed 20; received 0\.6, which removes 12 of 20",
        ),
        (
            {"min_density": 0.1},
            ValueError,
            r"not exceed what `within` left of 'w', 0 of 20; received 0\.1, which asks for 2 weights\.",
        ),
        (
            {"within": Mask({"w": HALF["w"], "other": HALF["v"]})},
            MaskMismatchError,
            r"mask entry 'other' must name a parameter",
        ),
        (
            {"within": Mask({"v": HALF["v"]})},
            MaskMismatchError,
            r"`within` must cover every name in scores; it lacks 'w'\.",
        ),
        (
            {"within": Mask({"w": HALF["w"], "v": HALF["v"].T})},
            MaskMismatchError,
            r"the mask of 'v' must have the parameter's shape \[10, 8\]; received \[8, 10\]",
        ),
        (
            {
                "sparsity": 0.5,
                "scope": n_of_m(2, 4, axis=0),
                "scores": {"w": W["w"]},
                "within": Mask({"w": W["w"] < 0}),
            },
            ValueError,
            r"4 consecutive weights of 'w' must have 2 left to keep; received a group with 0\.",
        ),
    ],
)
def test_an_error_says_how_within_contradicts(arguments, error, message):
    arguments = {"scores": W, "sparsity": 0.6, "within": HALF, **arguments}
    with pytest.raises(error, match=message):
        prune(**arguments)


def test_an_erk_budget_below_a_floor_names_the_tensor():
    with pytest.raises(ValueError, match=r"sparsity of 'large' must leave the 500 weights that min_density protects"):
        prune({"small": torch.rand(10, 10), "large": torch.rand(100, 100)}, 0.95, scope=erk, min_density=0.05)
