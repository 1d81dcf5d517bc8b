import pytest
import torch
from hand_made import NETWORKS, network

from hf_lottery import MaskMismatchError, gather_evidence, magnitude, prunable, saliency, score_weights, wanda
from hf_lottery.structured import UnitMask, unit_max, unit_mean, unit_scores, unit_sum
from hf_lottery.symmetry import SymmetryError


def random_scores(spec, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in spec.shapes.items()}


def gone_with(spec, group, unit):
    """The weights that go when one unit goes, for every index of its parents."""
    kept = torch.ones(spec.entry_shape(group), dtype=torch.bool)
    kept[..., unit] = False
    return ~UnitMask({group: kept}, spec)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_unit_gathers_the_weights_that_go_with_it(name):
    _, spec, _ = network(name)
    scores = random_scores(spec)
    total, mean, most = (unit_scores(spec, scores, reduce=reduce) for reduce in (unit_sum, unit_mean, unit_max))
    assert total.keys() == spec.free.keys()
    for group, found in total.items():
        assert found.shape == spec.entry_shape(group) and found.dtype == torch.float64
        for unit in range(found.shape[-1]) if found.shape[-1] > 1 else ():
            gone = gone_with(spec, group, unit)
            weights = torch.cat([scores[tensor][entry] for tensor, entry in gone.items()])
            rows = found[..., unit]
            torch.testing.assert_close(rows.sum(), weights.double().sum())
            torch.testing.assert_close(mean[group][..., unit].mean(), weights.double().mean())
            assert most[group][..., unit].max() == weights.max()


def test_a_weight_from_a_unit_to_itself_counts_once():
    _, spec, _ = network("square")
    ones = {name: torch.ones(shape) for name, shape in spec.shapes.items()}
    assert unit_scores(spec, ones, reduce=unit_sum)["h"].tolist() == [4 + 10 + 9 + 3] * 10
    assert unit_scores(spec, ones)["h"].tolist() == [1] * 10


def test_each_row_has_the_scores_of_its_own_parent():
    _, spec, _ = network("gqa")
    scores = {name: torch.zeros(shape) for name, shape in spec.shapes.items()}
    scores["qkv.weight"][36 + 5 + 2] = 1.0  # value dimension 2 of head 1
    found = unit_scores(spec, scores, reduce=unit_sum)
    assert found["vd"].nonzero().tolist() == [[1, 2]] and found["kv"].nonzero().tolist() == [[1]]
    assert not found["qd"].any() and found["stream"].eq(1).all()


def test_biases_do_not_count_and_part_of_the_tensors_may_be_scored():
    _, spec, _ = network("mlp")
    scores = random_scores(spec)
    wanted = unit_scores(spec, scores)
    for name in ("0.bias", "2.bias"):
        scores[name] = torch.full_like(scores[name], 1e9)
    assert all(torch.equal(found, wanted[group]) for group, found in unit_scores(spec, scores).items())
    assert list(unit_scores(spec, {"0.weight": scores["0.weight"]})) == ["h1"]
    assert list(unit_scores(spec, scores, exclude="h1")) == list(unit_scores(spec, scores, include="h2")) == ["h2"]


@pytest.mark.parametrize("score", [magnitude, saliency, wanda])
def test_scores_of_any_kind_are_gathered(score):
    model, spec, x = network("mlp")
    weights = prunable(model, include=".*")
    evidence = gather_evidence(model, [x[:4], x[4:8]], lambda net, batch: net(batch).square().sum(), within=weights)
    scores = score_weights(weights, score, evidence=evidence)
    found = unit_scores(spec, scores, reduce=unit_sum)
    wanted = scores["0.weight"].sum(dim=1) + scores["2.weight"].sum(dim=0)
    torch.testing.assert_close(found["h1"], wanted.double())


def test_a_reduction_of_ones_own():
    _, spec, _ = network("gqa")
    scores = random_scores(spec)
    found = unit_scores(spec, scores, reduce=lambda weights: weights.square().mean(-1).sqrt(), include="vd")
    assert found["vd"].shape == (3, 5) and found["vd"].dtype == torch.float32


def test_what_does_not_fit_is_refused():
    _, spec, _ = network("mlp")
    scores = random_scores(spec)
    with pytest.raises(MaskMismatchError, match=r"'2.weight' must have the shape \[12, 16\]; received \[2, 2\]"):
        unit_scores(spec, {**scores, "2.weight": torch.ones(2, 2)})
    with pytest.raises(MaskMismatchError, match="'fc.weight' must have an entry in the spec"):
        unit_scores(spec, {**scores, "fc.weight": torch.ones(2, 2)})
    with pytest.raises(MaskMismatchError, match="must hold a tensor of group 'h2'"):
        unit_scores(spec, {"0.weight": scores["0.weight"]}, include="h2")
    with pytest.raises(ValueError, match=r"one floating score for each unit of 'h1', of the shape \[16\]"):
        unit_scores(spec, scores, reduce=torch.sum)
    with pytest.raises(ValueError, match="'h1' must be numbers; received NaN"):
        unit_scores(spec, {**scores, "0.weight": torch.full((16, 6), torch.nan)})
    with pytest.raises(SymmetryError, match="include must match the name of a group"):
        unit_scores(spec, scores, include="h9")
