"""What a score declares to read of its evidence, and the dry call that finds what it did not declare."""

from functools import partial

import pytest
import torch
from torch import nn

from hf_lottery import magnitude, movement, needs, random_score, saliency, score_weights, wanda
from hf_lottery.pruning.evidence import Evidence
from hf_lottery.pruning.scores import check_score, needed_by

WEIGHTS = {"a": torch.ones(2, 3)}


@needs("gradient")
def taylor(weight, evidence, power=1):
    return (weight * evidence.gradient).abs() ** power


class Scorer:
    """An object whose methods are scores."""

    @needs("input_norm")
    def score(self, weight, evidence):
        return weight * evidence.input_norm

    def undeclared(self, weight, evidence):
        return weight * evidence.input_norm


class Distance:
    """A score that is an object."""

    needs = frozenset({"start"})

    def __call__(self, weight, evidence):
        return weight - evidence.start


def test_what_each_score_needs():
    expected = {magnitude: "", random_score: "", saliency: "gradient", movement: "start", wanda: "input_norm"}
    assert {score: " ".join(needed_by(score)) for score in expected} == expected


@pytest.mark.parametrize(
    ("score", "needed"),
    [
        (taylor, {"gradient"}),
        (partial(taylor, power=2), {"gradient"}),
        (partial(partial(taylor), power=2), {"gradient"}),
        (needs("gradient", "start")(partial(taylor)), {"gradient", "start"}),
        (Scorer().score, {"input_norm"}),
        (partial(Scorer().score), {"input_norm"}),
        (Distance(), {"start"}),
        (lambda weight, evidence: weight, {"start"}),
        (Scorer().undeclared, {"start"}),
    ],
)
def test_needs_of_functions_partials_and_methods(score, needed):
    assert needed_by(score) == needed


def test_the_decorated_function_is_the_same_one():
    def score(weight, evidence):
        return weight

    assert needs("gradient", "start")(score) is score


def test_unknown_evidence_is_refused():
    with pytest.raises(ValueError, match=r"needs must name gradient, input_norm, start; received 'hessian'\."):
        needs("gradient", "hessian")


@pytest.mark.parametrize(
    "score",
    [magnitude, random_score, saliency, movement, wanda, partial(taylor, power=2), Scorer().score, Distance()],
)
def test_scores_that_declare_what_they_read_pass(score):
    check_score(score, WEIGHTS)


def by_attribute(weight, evidence):
    return weight * evidence.gradient


def by_unpacking(weight, evidence):
    gradient, _, start = evidence
    return weight * gradient * start


def by_index(weight, evidence):
    return weight * evidence[0]


def by_negative_index(weight, evidence):
    return weight * evidence[-3]


def by_slice(weight, evidence):
    return weight * evidence[:1][0]


@pytest.mark.parametrize("score", [by_attribute, by_unpacking, by_index, by_negative_index, by_slice])
def test_an_undeclared_read_is_found(score):
    with pytest.raises(ValueError, match=r"'a': .* reads gradient undeclared\. Decorate it with @needs\('gradient'\)"):
        check_score(score, WEIGHTS)


@pytest.mark.parametrize("score", [by_attribute, by_unpacking, by_index, by_negative_index, by_slice])
def test_a_declared_read_is_fine_however_it_is_written(score):
    check_score(needs("gradient", "input_norm", "start")(partial(score)), WEIGHTS)


@pytest.mark.parametrize(
    ("score", "name"), [(Scorer().undeclared, "input_norm"), (needs("gradient")(lambda w, e: w * e.start), "start")]
)
def test_every_field_is_checked(score, name):
    with pytest.raises(ValueError, match=f"reads {name} undeclared"):
        check_score(score, WEIGHTS)


def test_a_score_of_another_shape_is_found():
    with pytest.raises(ValueError, match=r"score of 'a' must have the weight's shape \[2, 3\]; received \[2\]"):
        check_score(lambda weight, evidence: weight.sum(1), WEIGHTS)


def test_random_numbers_go_on_as_if_it_had_not_been_called():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_score(random_score, WEIGHTS)
    assert torch.equal(torch.rand(3), expected)


def test_one_call_for_each_shape_and_type():
    seen = []

    def score(weight, evidence):
        assert not torch.is_grad_enabled()
        seen.append((*weight.shape, weight.dtype))
        return weight

    check_score(
        score,
        {
            "a": nn.Parameter(torch.ones(2, 3)),
            "b": torch.zeros(2, 3),
            "c": torch.zeros(3, 2),
            "d": torch.zeros(2, 3).double(),
            "e": torch.zeros(3, 2),
        },
    )
    assert seen == [(2, 3, torch.float32), (3, 2, torch.float32), (2, 3, torch.float64)]


@pytest.mark.parametrize(
    ("score", "received", "missing"),
    [
        (taylor, Evidence(), "taylor must be given evidence with a gradient"),
        (
            partial(taylor, power=2),
            Evidence(start=torch.ones(2, 3)),
            "the score must be given evidence with a gradient",
        ),
        (Scorer().score, Evidence(torch.ones(2, 3)), "score must be given evidence with an input_norm"),
        (Distance(), Evidence(torch.ones(2, 3)), "the score must be given evidence with a start"),
    ],
)
def test_declared_evidence_that_is_missing_is_named(score, received, missing):
    with pytest.raises(ValueError, match=f"'a': {missing}; received none"):
        score_weights(WEIGHTS, score, evidence={"a": received})


def test_a_score_that_declares_nothing_may_go_without_evidence():
    assert score_weights(WEIGHTS, lambda weight, evidence: weight * 2)["a"].eq(2).all()
