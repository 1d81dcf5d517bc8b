import itertools

import pytest
import torch
from hand_made import network
from torch import nn

from hf_lottery import MaskMismatchError, MaskSeries, discover, global_ranking, score_weights, uniform
from hf_lottery.structured import UnitMask, prune_units, unit_mean, unit_scores, unit_sum
from hf_lottery.symmetry import SpecMismatchError, SymmetryError

FREE = {"mlp": ["h1", "h2"], "gqa": ["kv", "qd", "vd"], "experts": ["I"], "square": ["h"], "resnet": None}


def pruned(name, sparsity=0.5, *, scores=None, **options):
    model, spec, _ = network(name)
    include = options.pop("include", FREE[name] or list(spec.free))
    scores = score_weights(model) if scores is None else scores
    return spec, prune_units(model, spec, scores, sparsity=sparsity, include=include, **options)


def counts(mask):
    """How many units of each group stay, for each index of its parents."""
    return {group: int(kept.reshape(-1, kept.shape[-1])[0].sum()) for group, kept in mask.units.items()}


def equal_scores(spec):
    return {name: torch.ones(shape) for name, shape in spec.shapes.items()}


@pytest.mark.parametrize("name, scope", [*itertools.product(["mlp", "square", "resnet"], [global_ranking, uniform])])
def test_exactly_as_many_units_go_as_asked_for(name, scope):
    for sparsity in (0, 0.07, 0.3, 0.5, 0.77, 0.9):
        spec, mask = pruned(name, sparsity, scope=scope)
        total = [spec.groups[group].size for group in mask.units]
        if scope is global_ranking:
            gone = min(round(sparsity * sum(total)), sum(total) - len(total))
            assert mask.unit_count - mask.kept_units == gone
        else:
            assert list(counts(mask).values()) == [size - min(round(sparsity * size), size - 1) for size in total]


def test_the_lowest_go_whatever_the_group():
    model, spec, _ = network("mlp")
    scores = score_weights(model)
    found = unit_scores(spec, scores, include=["h1", "h2"])
    mask = prune_units(model, spec, scores, sparsity=0.25, include=["h1", "h2"])
    kept, gone = (torch.cat([found[g][keep == stay] for g, keep in mask.units.items()]) for stay in (True, False))
    assert len(gone) == 7 and gone.max() < kept.min()
    each = prune_units(model, spec, scores, sparsity=0.25, include=["h1", "h2"], scope=uniform)
    assert counts(each) == {"h1": 12, "h2": 9}
    for group, keep in each.units.items():
        assert found[group][~keep].max() < found[group][keep].min()


def test_a_mean_compares_what_each_weight_is_worth_and_a_sum_the_whole_unit():
    model, spec, _ = network("mlp")  # a unit of h1 has 18 weights, one of h2 has 20
    scores = equal_scores(spec)
    for name in ("0.weight", "2.weight"):
        scores[name] = scores[name] * 1.05
    chosen = dict(sparsity=8 / 28, include=["h1", "h2"])
    assert counts(prune_units(model, spec, scores, reduce=unit_mean, **chosen)) == {"h1": 16, "h2": 4}
    assert counts(prune_units(model, spec, scores, reduce=unit_sum, **chosen)) == {"h1": 8, "h2": 12}


def test_equal_units_go_by_name_then_position():
    model, spec, _ = network("mlp")
    mask = prune_units(model, spec, equal_scores(spec), sparsity=18 / 28, include=["h2", "h1"])
    assert mask.units["h1"].tolist() == [False] * 15 + [True]  # at its minimum
    assert mask.units["h2"].tolist() == [False] * 3 + [True] * 9


@pytest.mark.parametrize("scope", [global_ranking, uniform])
def test_every_index_of_the_parents_keeps_as_many_units_its_own_highest(scope):
    for sparsity in (0.1, 0.5, 0.8):
        spec, mask = pruned("gqa", sparsity, scope=scope, include=["qd", "vd"])
        found = unit_scores(spec, score_weights(network("gqa")[0]), include=["qd", "vd"])
        gone = mask.unit_count - mask.kept_units
        assert (
            0 <= round(sparsity * mask.unit_count) - gone < 2 * 3
        )  # whole slices of three heads, never more than asked
        for group, kept in mask.units.items():
            assert len(set(kept.sum(dim=1).tolist())) == 1
            for row, scores in zip(kept, found[group], strict=True):
                assert row.all() or scores[~row].max() < scores[row].min()


def test_both_levels_of_nested_groups_are_cut():
    _, mask = pruned("gqa", 0.5, scope=uniform, include=["kv", "rep", "vd"])
    assert counts(mask) == {"kv": 1, "rep": 1, "vd": 3}
    assert mask["o.weight"].any(dim=0).sum() == 3  # one head, one query head, three dimensions
    _, mask = pruned("experts", 0.5, scope=uniform, include=["G", "E", "I"])
    assert counts(mask) == {"G": 1, "E": 2, "I": 4}
    assert mask["up"].any(dim=2).sum() == 1 * 2 * 4


@pytest.mark.parametrize("scope, multiple", [*itertools.product([global_ranking, uniform], [2, 4])])
def test_what_stays_is_a_multiple(scope, multiple):
    for sparsity in (0, 0.2, 0.4, 0.75, 0.9):
        _, mask = pruned("mlp", sparsity, scope=scope, multiple=multiple)
        assert all(count % multiple == 0 and count for count in counts(mask).values())
        asked = round(sparsity * 28) if scope is global_ranking else sum(round(sparsity * size) for size in (16, 12))
        gone = 28 - mask.kept_units
        assert gone <= asked and (asked - gone < 2 * multiple or set(counts(mask).values()) & {multiple})


@pytest.mark.parametrize("scope, minimum", [*itertools.product([global_ranking, uniform], [1, 5])])
def test_the_minimum_stays(scope, minimum):
    _, mask = pruned("mlp", 0.95, scope=scope, minimum=minimum)
    assert min(counts(mask).values()) >= minimum
    _, mask = pruned("mlp", 0.95, scope=scope, minimum={"h1": 16, "h": 3}, multiple={"h2": 4})
    assert counts(mask) == {"h1": 3, "h2": 4}  # the last pattern that matches counts
    _, mask = pruned("mlp", 0.5, scope=scope, minimum=100)
    assert mask.sparsity == 0


@pytest.mark.parametrize("scope, multiple", [*itertools.product([global_ranking, uniform], [1, 2])])
@pytest.mark.parametrize("name", ["mlp", "gqa"])
def test_levels_of_a_search_are_nested(name, scope, multiple):
    include = {"mlp": ["h1", "h2"], "gqa": ["qd", "stream"]}[name]
    model, spec, _ = network(name)
    masks, before = [], None
    for level, sparsity in enumerate((0, 0.3, 0.5, 0.8)):
        generator = torch.Generator().manual_seed(level)
        scores = {n: torch.randn(shape, generator=generator) for n, shape in spec.shapes.items()}
        before = prune_units(
            model, spec, scores, sparsity=sparsity, scope=scope, include=include, multiple=multiple, within=before
        )
        masks.append(before)
    assert MaskSeries(masks)[2] == masks[2]
    for a, b in itertools.pairwise(masks):
        assert all((a.units[group] | ~kept).all() for group, kept in b.units.items())
    if name == "mlp" and multiple == 1 and scope is global_ranking:
        assert [28 - mask.kept_units for mask in masks] == [0, 8, 14, 22]


def test_a_scope_of_ones_own():
    def protecting(request):
        return {name: torch.ones_like(score, dtype=torch.bool) if name == "h1" else ~torch.ones_like(score).bool()
                | (torch.arange(len(score)) > 3).unsqueeze(1) for name, score in request.scores.items()}  # fmt: skip

    _, mask = pruned("mlp", 0.5, scope=protecting)
    assert counts(mask) == {"h1": 16, "h2": 8}


def test_the_model_is_not_changed_and_the_mask_covers_its_matrices():
    model, spec, _ = network("gqa")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask = prune_units(model, spec, score_weights(model), sparsity=0.4, include=["kv", "stream"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert list(mask) == ["qkv.weight", "o.weight", "head.weight"]  # embed.weight is the same parameter
    mask.check_fits(model)
    weight_normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    spec = discover(weight_normed, (torch.randn(3, 4),))
    with pytest.warns(UserWarning, match="no weight that is computed"):
        mask = prune_units(weight_normed, spec, score_weights(weight_normed), sparsity=0.5)
    assert list(mask) == ["2.weight"] and mask.unit_sparsity == 0.5


def raises(error, message, name="mlp", sparsity=0.5, **options):
    with pytest.raises(error, match=message):
        pruned(name, sparsity, **options)


def test_bad_input_is_refused():
    for sparsity in (1, -0.1, 1.5):
        raises(ValueError, r"sparsity must be in \[0, 1\)", sparsity=sparsity)
    raises(TypeError, "sparsity must be a number", sparsity="half")
    raises(ValueError, "minimum must be a whole number from 1 on; received 0. A group that is cut to", minimum=0)
    raises(ValueError, "minimum must be a whole number from 1 on; received 0.5", minimum={"h1": 0.5})
    raises(ValueError, "multiple must divide the units of every group; received 8 for 'h2', which has 12", multiple=8)
    raises(ValueError, "include must match the name of a chosen group; received 'h9'", multiple={"h9": 8})
    raises(SymmetryError, "include must match the name of a group; received 'h9'", include="h9")
    raises(SymmetryError, "a group must be free to be pruned; received 'in', frozen: input", include="^in$")
    raises(SymmetryError, "at least one group must be chosen", include="h1", exclude="h1")
    model, *_ = network("mlp")
    scores = score_weights(model)
    raises(MaskMismatchError, "received none of '2.weight'", scores={"0.weight": scores["0.weight"]})
    raises(
        MaskMismatchError, r"'2.weight' must have the shape \[12, 16\]", scores={**scores, "2.weight": torch.ones(2, 2)}
    )
    raises(ValueError, "must be numbers; received NaN", scores={**scores, "2.weight": scores["2.weight"] * torch.nan})
    with pytest.raises(SpecMismatchError, match="must be in the spec|must have the"):
        prune_units(model, network("gqa")[1], scores, sparsity=0.5)


def test_a_mask_to_prune_within_must_fit():
    model, spec, _ = network("mlp")
    scores = score_weights(model)
    first = prune_units(model, spec, scores, sparsity=0.5, include=["h1", "h2"])
    raises(
        ValueError, "sparsity must be at least 0.5, because `within` removed 14 of 28 units", sparsity=0.4, within=first
    )
    raises(
        MaskMismatchError,
        "`within` must be of the chosen groups; received 'h2'",
        include="h1",
        within=first,
        sparsity=0.9,
    )
    odd = UnitMask({"h1": torch.arange(16) > 0, "h2": torch.arange(12) >= 0}, spec)
    raises(ValueError, "received 2 for 'h1', which has 15 units left in `within`", multiple=2, within=odd)
    other = UnitMask({"kv": torch.tensor([True, True, False])}, network("gqa")[1])
    raises(SpecMismatchError, "must be of the given spec", within=other)
