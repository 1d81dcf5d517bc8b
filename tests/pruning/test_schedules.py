import itertools

import pytest

from hf_lottery import cubic, geometric, one_shot


def test_geometric_levels_remove_a_share_of_what_is_left():
    path = geometric(levels=5, pruning_fraction=0.2)
    assert path[0] == 0.0 and len(path) == 6
    assert [(1 - b) / (1 - a) for a, b in itertools.pairwise(path)] == pytest.approx([0.8] * 5)


@pytest.mark.parametrize("sparsity", [0.05, 0.2, 0.36, 0.5, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_geometric_hits_its_target_exactly(sparsity, fraction):
    path = geometric(sparsity=sparsity, pruning_fraction=fraction)
    assert path[-1] == sparsity
    assert all(a < b for a, b in itertools.pairwise(path))
    assert (1 - path[-1]) / (1 - path[-2]) >= 1 - fraction - 1e-9


def test_geometric_adds_no_level_for_rounding():
    assert geometric(sparsity=0.36) == [0.0, 0.2, 0.36]
    assert geometric(sparsity=0.1 + 0.2, pruning_fraction=0.3) == [0.0, 0.1 + 0.2]


def test_one_shot_and_cubic():
    assert one_shot(sparsity=0.9) == one_shot(sparsity=0.9, levels=1) == [0.0, 0.9]
    assert cubic(sparsity=1 / 3, levels=3)[-1] == 1 / 3
    path = cubic(sparsity=0.8, levels=4)
    assert path[0] == 0.0 and path[-1] == 0.8
    assert path[2] == pytest.approx(0.8 * (1 - 0.5**3))
    steps = [b - a for a, b in itertools.pairwise(path)]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometric(sparsity=0.5, levels=3), "exactly one of sparsity and levels.*sparsity=0.5, levels=3"),
        (lambda: geometric(), "exactly one of sparsity and levels.*None, levels=None"),
        (lambda: geometric(sparsity=1.0), r"below 1; received 1\.0"),
        (lambda: geometric(sparsity=0), r"above 0 and below 1; received 0\."),
        (lambda: geometric(sparsity=-0.1), "received -0.1"),
        (lambda: geometric(sparsity=80), "received 80. Pass a fraction such as 0.8"),
        (lambda: geometric(sparsity=float("nan")), "received nan"),
        (lambda: geometric(sparsity=0.5, pruning_fraction=0), r"pruning_fraction must be in \(0, 1\); received 0"),
        (lambda: geometric(levels=2, pruning_fraction=1), r"pruning_fraction must be in \(0, 1\); received 1"),
        (lambda: geometric(levels=0), "levels must be at least 1; received 0"),
        (lambda: one_shot(levels=3), "one_shot must be given a sparsity and no levels; received None and 3"),
        (lambda: one_shot(levels=1), "received None and 1"),
        (lambda: one_shot(sparsity=0.5, levels=3), "received 0.5 and 3"),
        (lambda: one_shot(sparsity=80), "received 80. Pass a fraction such as 0.8"),
        (lambda: cubic(sparsity=0.5), "cubic must be given sparsity and levels; received 0.5 and None"),
        (lambda: cubic(levels=3), "received None and 3"),
        (lambda: cubic(sparsity=80, levels=3), "received 80. Pass a fraction such as 0.8"),
        (lambda: cubic(sparsity=0.5, levels=0), "levels must be at least 1; received 0"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()
