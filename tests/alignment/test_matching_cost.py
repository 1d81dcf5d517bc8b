"""What weight matching saves changes no result: it is compared with the plain path, and the work is counted."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import NETWORKS, network, planted, spec_of, unrelated

from hf_lottery.alignment import assignment, matching, objective
from hf_lottery.alignment.assignment import Family, assign, families, summed_terms
from hf_lottery.alignment.coordinate_descent import Part, connected
from hf_lottery.alignment.objective import WeightTie
from hf_lottery.symmetry.errors import SpecMismatchError

weight_matching = partial(matching.weight_matching, residual=True)  # the hand-made networks are to be matched whole


def counted(monkeypatch, owner, name):
    calls, whole = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: calls.append(name) or whole(*args))
    return calls


INWARD = "_sweep_inward"


def always_anew(part, run, whole=getattr(Part, INWARD)):  # noqa: B008
    whole(part, run)
    run.kept.clear()


PLAIN = {
    "every block on its own": (objective, "_SMALL", 0),
    "every product anew": (Part, INWARD, always_anew),
    "every pair of heads on its own": (Family, "_alone", lambda self, children, terms: ([], list(children))),
    "no reduction": (assignment, "_REDUCED", 10**9),
}


@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_is_that_of_the_plain_path(name, plain, monkeypatch):
    pairs = [planted(name, seed, noise=1.5)[:3] for seed in range(4)]
    found, other = [], []
    for matches in (found, other):
        matches.extend(weight_matching(spec, source=source, target=target) for source, target, spec in pairs)
        monkeypatch.setattr(*PLAIN[plain])
    for ours, theirs in zip(found, other, strict=True):
        assert ours.permutation == theirs.permutation
        assert ours.report.objective == pytest.approx(theirs.report.objective, rel=1e-9)
        for group, match in ours.report.groups.items():
            assert vars(match) == pytest.approx(vars(theirs.report.groups[group]), rel=1e-9, abs=1e-12)


def test_what_was_compared_is_not_compared_again(monkeypatch):
    source, target, spec, _ = unrelated("resnet")
    products = counted(monkeypatch, WeightTie, "_gram")
    weight_matching(spec, source=source, target=target)
    saved = len(products)
    monkeypatch.setattr(Part, INWARD, always_anew)
    weight_matching(spec, source=source, target=target)
    assert saved < len(products) - saved


def test_a_neighbour_that_changed_is_compared_again(monkeypatch):
    groups = {"in": (9, (), "input"), "a": 8, "b": 8, "c": 8, "d": 8, "out": (9, (), "output")}
    layers = {"1": ("a", "in"), "2": ("b", "a"), "3": ("c", "b"), "4": ("d", "c"), "5": ("out", "d")}
    spec, generator = spec_of(groups, layers), torch.Generator().manual_seed(0)
    found: list[list[Any]] = [[], []]
    pairs = [
        [{name: torch.randn(spec.shapes[name], generator=generator) for name in layers} for _ in "12"] for _ in range(9)
    ]
    for matches in found:
        matches.extend(weight_matching(spec, source=source, target=target).permutation for source, target in pairs)
        monkeypatch.setattr(Part, INWARD, always_anew)
    assert found[0] == found[1]


def test_small_blocks_share_a_product(monkeypatch):
    source, target, spec, _ = unrelated("resnet")
    joined = matching.weight_ties(spec, source, target, list(spec.free))
    monkeypatch.setattr(objective, "_SMALL", 0)
    single = matching.weight_ties(spec, source, target, list(spec.free))
    assert len(joined) < len(single)
    assert sum(tie.elements for tie in joined) == sum(tie.elements for tie in single)
    assert sum(tie.norm for tie in joined) == pytest.approx(sum(tie.norm for tie in single))


def test_independent_groups_are_solved_once_whatever_the_starts(monkeypatch):
    """Both groups meet a group that stays alone, as the layers of a transformer do."""
    groups = {"o": (6, (), "output"), "a": 5, "b": 7, "heads": 2, "d": (3, ("heads",))}
    spec = spec_of(groups, {"s": ("o", "a"), "t": ("b", "o"), "u": ("o", "heads", "d")})
    generator = torch.Generator().manual_seed(0)
    source, target = ({name: torch.randn(spec.shapes[name], generator=generator) for name in "stu"} for _ in "12")
    parts = connected(matching.weight_ties(spec, source, target, list(spec.free)), families(spec, list(spec.free)))
    assert len(parts) == 3 and not any(part.start_matters for part in parts)
    solved = counted(monkeypatch, Family, "solve")
    pair: dict[str, Any] = {"source": source, "target": target}
    one = weight_matching(spec, **pair)
    assert one == weight_matching(spec, **pair, restarts=5)
    assert one.permutation == weight_matching(spec, **pair, start=spec.random(0)).permutation
    assert len(solved) == 3 * len(parts) and one.report.converged


def test_groups_that_meet_are_one_part():
    source, target, spec, _ = unrelated("resnet")
    chosen = list(spec.free)
    ties = matching.weight_ties(spec, source, target, chosen)
    (part,) = connected(ties, families(spec, chosen))
    assert part.start_matters and len(part.families) == len(chosen)


def test_a_stack_of_scores_is_solved_one_by_one():
    for size in (1, 5, 70):
        scores = np.random.default_rng(size).normal(size=(2, 3, size, size))
        alone = [[assign(score) for score in row] for row in scores]
        assert np.array_equal(assign(scores), alone)


def test_terms_are_added_up_in_double_precision_and_not_changed():
    one, tiny = (np.array([[number]], np.float32) for number in (1.0, 2.0**-30))
    total = summed_terms([{("a",): one}, {("a",): tiny}, {("a",): tiny}])[("a",)]
    assert total.item() == 1 + 2.0**-29 and one.item() == 1


def test_a_start_must_be_a_permutation_of_the_spec():
    source, target, spec, _ = unrelated("mlp")
    pair: dict[str, Any] = {"source": source, "target": target}
    with pytest.raises(TypeError, match="start must be a permutation; received str"):
        weight_matching(spec, start="identity", **pair)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecMismatchError, match="start must be a permutation of the spec"):
        weight_matching(spec, start=network("resnet")[1].identity(), **pair)


def test_groups_that_are_not_matched_stay_as_the_start_has_them():
    source, target, spec, _ = unrelated("mlp")
    start = spec.random(0)
    found = weight_matching(spec, source=source, target=target, include="^h1$", start=start).permutation
    assert np.array_equal(found.entry("h2"), start.entry("h2"))
