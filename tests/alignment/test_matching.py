"""weight_matching() and activation_matching(): they find what was planted, and what they optimise is what they say."""

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hand_made import NETWORKS, network, planted, spec_of, unrelated
from torch import nn

from hf_lottery import discover
from hf_lottery.alignment import matching
from hf_lottery.alignment.assignment import families
from hf_lottery.alignment.matching import residual_streams
from hf_lottery.symmetry.errors import SpecMismatchError, SymmetryError
from hf_lottery.symmetry.permutation import Permutation, permute_
from hf_lottery.symmetry.spec import PermutationSpec

# The hand-made networks are to be matched whole.
activation_matching = partial(matching.activation_matching, residual=True)
weight_matching = partial(matching.weight_matching, residual=True)


def objective(p, source, target) -> float:
    moved = p(dict(source.named_parameters()))
    return float(sum((moved[name] * w).sum() for name, w in target.named_parameters()).detach())


def methods(x):
    return {
        "weights": weight_matching,
        "activations": lambda spec, **pair: activation_matching(spec, batches=[(x[:32],), (x[32:],)], **pair),
    }


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_planted_permutation_is_recovered(name, method):
    for seed in range(8):
        source, target, spec, x, p = planted(name, seed)
        found = methods(x)[method](spec, source=source, target=target)
        assert found.permutation == p
        assert found.report.converged and set(found.report.groups) == {n for n, g in spec.free.items() if g.size > 1}
        for match in found.report.groups.values():
            assert 0.75 < match.matched <= 1 and match.identity < 0.7 and match.random < 0.7
            assert match.moved == 1.0


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_changed(name, method):
    source, target, spec, x, _ = planted(name)
    source.train()
    before = [copy.deepcopy(model.state_dict()) for model in (source, target)]
    methods(x)[method](spec, source=source, target=target)
    for model, state in zip((source, target), before, strict=True):
        assert all(torch.equal(model.state_dict()[key], w) for key, w in state.items())
    assert source.training and not target.training and not source._forward_hooks
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in source.modules())


@pytest.mark.parametrize("start", [None, PermutationSpec.identity, lambda spec: spec.random(3)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_objective_never_falls_and_is_what_it_says(name, start):
    source, target, spec, _ = unrelated(name)
    pair = {"source": source, "target": target, "start": start and start(spec)}
    totals = [objective(start(spec) if start else spec.identity(), source, target)]
    for sweeps in range(1, 6):
        found = weight_matching(spec, iterations=sweeps, **pair)
        totals.append(objective(found.permutation, source, target))
    assert totals == sorted(totals) and totals[-1] > totals[0]
    found = weight_matching(spec, **pair)
    assert found.report.converged
    gain = objective(found.permutation, source, target) - totals[0]
    assert found.report.objective[-1] - found.report.objective[0] == pytest.approx(gain, rel=1e-9)
    assert list(found.report.objective) == sorted(found.report.objective)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_group_can_be_improved_alone(name):
    source, target, spec, _ = unrelated(name)
    p = weight_matching(spec, source=source, target=target).permutation
    best = objective(p, source, target)
    for seed, group in itertools.product(range(10), spec.free):
        other = spec.random(seed, include=[group])
        if group != "h":  # of the recurrent network: its own neighbour, so only a linearisation is optimal
            assert objective(p @ other, source, target) <= best + 1e-9
            assert objective(other @ p, source, target) <= best + 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_the_seed_decides(name):
    source, target, spec, _ = unrelated(name)
    pair = {"source": source, "target": target, "start": spec.identity()}
    found = [weight_matching(spec, seed=seed, **pair).permutation for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1]
    if len(spec.free) > 2:
        assert any(other != found[0] for other in found[2:])


@pytest.mark.parametrize("name", NETWORKS)
def test_restarts_never_lose(name):
    source, target, spec, _ = unrelated(name)
    totals = [
        objective(weight_matching(spec, source=source, target=target, restarts=n).permutation, source, target)
        for n in range(5)
    ]
    assert totals == sorted(totals)


def brute_force(spec, source, target, groups) -> float:
    """Return the best objective over all entries of some groups, the others at the identity."""
    choices = []
    for name in groups:
        group = spec.groups[name]
        rows = int(np.prod([spec.groups[parent].size for parent in group.parents]))
        one = list(itertools.permutations(range(group.size)))
        shape = (*(spec.groups[parent].size for parent in group.parents), group.size)
        choices.append([np.array(rows_).reshape(shape) for rows_ in itertools.product(one, repeat=rows)])
    return max(
        objective(Permutation(spec, dict(zip(groups, entry, strict=True))), source, target)
        for entry in itertools.product(*choices)
    )


@pytest.mark.parametrize(
    ("name", "sizes", "groups", "seeds"),
    [
        ("attention", (3, 1, 2, 2, 4), ["kv", "qd", "vd"], 3),
        ("attention", (2, 2, 2, 3, 4), ["kv", "rep", "qd", "vd"], 1),  # 1152 permutations
        ("experts", (2, 2, 2, 3), ["G", "E", "I"], 3),
    ],
)
def test_a_block_step_is_exact(name, sizes, groups, seeds):
    for seed in range(seeds):
        torch.manual_seed(seed)
        source, spec, _ = NETWORKS[name](*sizes)
        target, _, _ = NETWORKS[name](*sizes)
        source, target = source.double(), target.double()
        p = weight_matching(spec, source=source, target=target, include=groups).permutation
        assert set(p.entries) <= set(groups)
        assert objective(p, source, target) == pytest.approx(brute_force(spec, source, target, groups), rel=1e-9)


def test_large_coupled_groups_are_solved_in_turn():
    torch.manual_seed(0)
    source, spec, _ = NETWORKS["attention"](2, 6, 5, 6, 8)
    p, target = spec.random(0), copy.deepcopy(source)
    permute_(target, p)
    assert weight_matching(spec, source=source, target=target).permutation == p


def test_an_inner_group_is_matched_where_its_outer_one_stays():
    source, target, spec, x, _ = planted("gqa")
    p = weight_matching(spec, source=source, target=target, include="qd|vd|stream").permutation
    assert set(p.entries) <= {"qd", "vd", "stream"}
    q = activation_matching(spec, source=source, target=target, batches=[x], exclude="kv").permutation
    assert "kv" not in q.entries and "vd" in q.entries
    frozen = spec.freeze("kv", "test")
    assert set(weight_matching(frozen, source=source, target=target).permutation.entries) <= set(frozen.free)


def test_an_outer_group_is_matched_where_its_inner_one_is_frozen():
    source, _, spec, _, _ = planted("gqa")
    frozen = spec.freeze("qd", "rotary")
    p, moved = frozen.random(4), copy.deepcopy(source)
    permute_(moved, p)
    assert weight_matching(frozen, source=source, target=moved).permutation == p


def test_a_group_with_independent_parents():
    """Neither parent lies inside the other: the inner group is a family of its own, solved for each pair."""
    spec = spec_of({"a": 4, "b": 3, "d": (5, ("a", "b")), "o": (6, (), "output")}, {"t": ("o", "a", "b", "d")})
    assert [family.members for family in families(spec, ["a", "b", "d"])] == [("a",), ("b",), ("d",)]
    p, source = spec.random(0), {"t": torch.randn(6, 4, 3, 5)}
    steps = weight_matching(spec, source=source, target=p(source)).report.objective
    assert list(steps) == sorted(steps) and steps[-1] > steps[0] + 10
    assert weight_matching(spec, source=source, target=p(source), restarts=20).permutation == p
    one = spec.random(0, include="^d$")
    assert weight_matching(spec, source=source, target=one(source)).permutation == one


def test_residual_stream_can_be_left_alone():
    source, target, spec, _ = unrelated("resnet")
    assert "stream" not in weight_matching(spec, source=source, target=target, exclude="stream").permutation.entries
    assert set(weight_matching(spec, source=source, target=target, include=["mid"]).permutation.entries) == {"mid"}


def test_residual_streams_stay_unless_they_are_asked_for():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=30, pad_token_id=0
    )
    torch.manual_seed(0)
    source, target = BertForSequenceClassification(config).eval(), BertForSequenceClassification(config).eval()
    spec = discover(source, {"input_ids": torch.randint(1, 30, (2, 9))})
    (stream,) = residual_streams(spec)
    assert stream == "bert.embeddings.word_embeddings.weight[1]"

    def moved(**options):
        return matching.weight_matching(spec, source=source, target=target, **options).permutation.entries

    with pytest.warns(UserWarning, match="match no better than chance"):
        assert stream not in moved()
    assert stream in moved(residual=True)
    assert stream in moved(include=[stream]) and stream not in moved(include=[stream], residual=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    source, spec, x = network("attention")
    p, target = spec.random(0), copy.deepcopy(source)
    permute_(target, p)
    source, target, x = source.to(dtype), target.to(dtype), x.to(dtype)
    assert weight_matching(spec, source=source, target=target).permutation == p
    assert weight_matching(spec, source=source.state_dict(), target=target).permutation == p
    assert activation_matching(spec, source=source, target=target, batches=[x]).permutation == p


def test_state_dicts_are_matched_like_modules():
    source, target, spec, _ = unrelated("resnet")
    found = weight_matching(spec, source=source, target=target)
    assert found == weight_matching(spec, source=source.state_dict(), target=target.state_dict())
    assert found == weight_matching(spec, source=source, target=target.state_dict())


def test_dead_units_are_counted():
    source, target, spec, x, _ = planted("mlp")
    with torch.no_grad():
        for model, dead in ((source, 2), (target, 3)):
            model[0].weight[:dead] = 0
            model[0].bias[:dead] = -1
    found = activation_matching(spec, source=source, target=target, batches=[x])
    assert found.report.groups["h1"].dead == 3 and found.report.groups["h2"].dead == 0


def test_bad_input():
    source, target, spec, x = unrelated("mlp")
    pair = {"source": source, "target": target}
    with pytest.raises(ValueError, match="must see at least one batch; received none"):
        activation_matching(spec, batches=[], **pair)
    with pytest.raises(ValueError, match="activations at '2', of group h1, must be finite; received NaN or infinity"):
        activation_matching(spec, batches=[x * float("nan")], **pair)
    with pytest.raises(ValueError, match="iterations must be 1 or more; received 0"):
        weight_matching(spec, iterations=0, **pair)
    with pytest.raises(SymmetryError, match="include must match the name of a group; received 'nothing'"):
        weight_matching(spec, include="nothing", **pair)
    with pytest.raises(SpecMismatchError, match="tensor 'norm.weight' must be in the spec"):
        weight_matching(spec, source=source, target=network("gqa")[0])
    part = {name: w for name, w in target.state_dict().items() if name != "2.bias"}
    with pytest.raises(SpecMismatchError, match="tie the same ones; received '2.bias' in one only"):
        weight_matching(spec, source=source, target=part)


def test_networks_that_tie_different_weights_are_refused():
    source, spec, _ = network("attention")
    target = copy.deepcopy(source)
    target.head.weight = nn.Parameter(target.head.weight.detach().clone())
    with pytest.raises(SpecMismatchError, match="tie the same ones; received '(head|embed).weight' in one only"):
        weight_matching(spec, source=source, target=target)
