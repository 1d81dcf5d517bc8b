import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hand_made import NETWORKS, network, spec_of
from torch import nn

from hf_lottery.alignment import correlation, matching
from hf_lottery.alignment.assignment import assign, families
from hf_lottery.alignment.coordinate_descent import descend, inward
from hf_lottery.alignment.correlation import correlations, sites
from hf_lottery.alignment.matching import _weight_ties
from hf_lottery.symmetry.errors import SpecMismatchError, SymmetryError
from hf_lottery.symmetry.permutation import permute_

# The hand-made networks are to be matched whole.
activation_matching = partial(matching.activation_matching, residual=True)
weight_matching = partial(matching.weight_matching, residual=True)

NOISE = 0.02


def planted(name: str, seed: int = 0):
    """A target that is a permuted source with noise: source, target, spec, inputs, the permutation planted."""
    source, spec, x = network(name, seed)
    p, target = spec.random(seed + 1), copy.deepcopy(source)
    permute_(target, p)
    with torch.no_grad():
        for w in target.parameters():
            w.add_(NOISE * torch.randn_like(w))
    return source, target, spec, x, p


def unrelated(name: str):
    source, spec, x = network(name, 1)
    return source, network(name, 2)[0], spec, x


def objective(spec, p, source, target) -> float:
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
        assert found == p
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


@pytest.mark.parametrize("name", NETWORKS)
def test_the_objective_never_falls_and_is_what_it_says(name):
    source, target, spec, _ = unrelated(name)
    totals = [objective(spec, spec.identity(), source, target)]
    for sweeps in range(1, 6):
        p = weight_matching(spec, source=source, target=target, iterations=sweeps, restarts=0)
        totals.append(objective(spec, p, source, target))
    assert totals == sorted(totals) and totals[-1] > totals[0]
    p = weight_matching(spec, source=source, target=target, restarts=0)
    assert p.report.converged
    gain = objective(spec, p, source, target) - totals[0]
    assert p.report.objective[-1] - p.report.objective[0] == pytest.approx(gain, rel=1e-9)
    assert list(p.report.objective) == sorted(p.report.objective)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_group_can_be_improved_alone(name):
    source, target, spec, _ = unrelated(name)
    p = weight_matching(spec, source=source, target=target)
    best = objective(spec, p, source, target)
    for seed, group in itertools.product(range(10), spec.free):
        other = spec.random(seed, groups=[group])
        if group != "h":  # of the recurrent network: its own neighbour, so only a linearisation is optimal
            assert objective(spec, p @ other, source, target) <= best + 1e-9
            assert objective(spec, other @ p, source, target) <= best + 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_the_seed_decides(name):
    source, target, spec, _ = unrelated(name)
    pair = {"source": source, "target": target, "restarts": 0}
    found = [weight_matching(spec, seed=seed, **pair) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1]
    if len(spec.free) > 2:
        assert any(other != found[0] for other in found[2:])


@pytest.mark.parametrize("name", NETWORKS)
def test_restarts_never_lose(name):
    source, target, spec, _ = unrelated(name)
    totals = [
        objective(spec, weight_matching(spec, source=source, target=target, restarts=n), source, target)
        for n in range(5)
    ]
    assert totals == sorted(totals)


def brute_force(spec, source, target, groups) -> float:
    """The best objective over all entries of some groups, the others at the identity."""
    choices = []
    for name in groups:
        group = spec.groups[name]
        rows = int(np.prod([spec.groups[parent].size for parent in group.parents]))
        one = list(itertools.permutations(range(group.size)))
        shape = (*(spec.groups[parent].size for parent in group.parents), group.size)
        choices.append([np.array(rows_).reshape(shape) for rows_ in itertools.product(one, repeat=rows)])
    from hf_lottery.symmetry.permutation import Permutation

    return max(
        objective(spec, Permutation(spec, dict(zip(groups, entry, strict=True))), source, target)
        for entry in itertools.product(*choices)
    )


@pytest.mark.parametrize(
    ("build", "groups"),
    [
        (lambda: NETWORKS["attention"](3, 1, 2, 2, 4), ["kv", "qd", "vd"]),
        (lambda: NETWORKS["attention"](2, 2, 2, 3, 4), ["kv", "rep", "qd", "vd"]),
        (lambda: NETWORKS["experts"](2, 2, 2, 3), ["G", "E", "I"]),
    ],
)
def test_a_block_step_is_exact(build, groups):
    for seed in range(3):
        torch.manual_seed(seed)
        source, spec, _ = build()
        target, _, _ = build()
        source, target = source.double(), target.double()
        p = weight_matching(spec, source=source, target=target, groups=groups)
        assert set(p.entries) <= set(groups)
        assert objective(spec, p, source, target) == pytest.approx(brute_force(spec, source, target, groups), rel=1e-9)


def test_large_coupled_groups_are_solved_in_turn():
    torch.manual_seed(0)
    source, spec, _ = NETWORKS["attention"](2, 6, 5, 6, 8)
    p, target = spec.random(0), copy.deepcopy(source)
    permute_(target, p)
    assert weight_matching(spec, source=source, target=target) == p


def test_an_inner_group_is_matched_where_its_outer_one_stays():
    source, target, spec, x, _ = planted("gqa")
    p = weight_matching(spec, source=source, target=target, groups="qd|vd|stream")
    assert set(p.entries) <= {"qd", "vd", "stream"}
    q = activation_matching(spec, source=source, target=target, batches=[x], exclude="kv")
    assert "kv" not in q.entries and "vd" in q.entries
    assert set(weight_matching(spec.freeze("kv", "test"), source=source, target=target).entries) <= set(spec.free)


def test_an_outer_group_is_matched_where_its_inner_one_is_frozen():
    source, _, spec, _, _ = planted("gqa")
    frozen = spec.freeze("qd", "rotary")
    p, moved = frozen.random(4), copy.deepcopy(source)
    permute_(moved, p)
    assert weight_matching(frozen, source=source, target=moved) == p


def test_a_group_with_independent_parents():
    """Neither parent lies inside the other: the inner group is a family of its own, solved for each pair."""
    spec = spec_of({"a": 4, "b": 3, "d": (5, ("a", "b")), "o": (6, (), "output")}, {"t": ("o", "a", "b", "d")})
    assert [family.members for family in families(spec, ["a", "b", "d"])] == [("a",), ("b",), ("d",)]
    p, source = spec.random(0), {"t": torch.randn(6, 4, 3, 5)}
    steps = weight_matching(spec, source=source, target=p(source)).report.objective
    assert list(steps) == sorted(steps) and steps[-1] > steps[0] + 10
    assert weight_matching(spec, source=source, target=p(source), restarts=20) == p
    one = spec.random(0, groups="d")
    assert weight_matching(spec, source=source, target=one(source)) == one


def test_residual_stream_can_be_left_alone():
    source, target, spec, _ = unrelated("resnet")
    assert "stream" not in weight_matching(spec, source=source, target=target, exclude="stream").entries
    assert set(weight_matching(spec, source=source, target=target, groups=["mid"]).entries) == {"mid"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    source, spec, x = network("attention")
    p, target = spec.random(0), copy.deepcopy(source)
    permute_(target, p)
    source, target, x = source.to(dtype), target.to(dtype), x.to(dtype)
    assert weight_matching(spec, source=source, target=target) == p
    assert weight_matching(spec, source=source.state_dict(), target=target) == p
    assert activation_matching(spec, source=source, target=target, batches=[x]) == p


def test_state_dicts_are_matched_like_modules():
    source, target, spec, _ = unrelated("resnet")
    p = weight_matching(spec, source=source, target=target)
    assert p == weight_matching(spec, source=source.state_dict(), target=target.state_dict())
    assert p == weight_matching(spec, source=source, target=target.state_dict())


class Dictionary(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *, inputs, scale=1.0):
        return {"logits": self.inner(inputs) * scale}


def test_batches_of_every_kind():
    source, target, spec, x, p = planted("mlp")
    pair = {"source": source, "target": target}
    for batches in ([x], [(x,)], iter([[x]])):
        assert activation_matching(spec, batches=batches, **pair) == p
    assert activation_matching(spec, batches=[{"x": x}], forward=lambda m, b: m(b["x"]), **pair) == p
    wrapped = spec_of(
        {g.name: (g.size, g.parents, g.frozen) for g in spec.groups.values()},
        {f"inner.{n}": tuple(" ".join(a.leaves) for a in b[0].axes) for n, b in spec.tensors.items()},
    )
    pair = {name: Dictionary(model) for name, model in pair.items()}
    found = activation_matching(wrapped, batches=[{"inputs": x}], **pair)
    assert found.entries.keys() == p.entries.keys()
    assert all(np.array_equal(found.entry(group), entry) for group, entry in p.entries.items())


def test_correlations_are_those_of_numpy():
    source, target, spec, x = unrelated("mlp")
    batches = [x[:10], x[10:40], x[40:]]
    found = dict(
        (axis.leaves, matrix)
        for axis, matrix in correlations(spec, ["h1"], source=source, target=target, batches=batches)
    )
    with torch.no_grad():
        a, b = (model[:2](x).numpy() for model in (target, source))
    alive = np.ix_(a.std(0) > 0, b.std(0) > 0)
    expected = np.corrcoef(a.T, b.T)[:16, 16:] if len(alive[0]) == 16 else None
    assert expected is not None
    np.testing.assert_allclose(found["h1",], expected, atol=1e-12)


def test_the_constant_shift_keeps_float32_exact():
    source, target, spec, x = unrelated("mlp")
    with torch.no_grad():
        for model in (source, target):
            model[0].bias += 100
    kwargs = {"groups": ["h1"], "source": source, "target": target}
    (_, exact), *_ = correlations(spec, batches=x.split(16), **kwargs)
    source.float(), target.float()
    (_, single), *_ = correlations(spec, batches=x.float().split(16), **kwargs)
    np.testing.assert_allclose(single, exact, atol=2e-5)


def test_each_network_sees_each_batch_once():
    source, target, spec, x, _ = planted("resnet")
    seen = []
    for model in (source, target):
        model.register_forward_hook(lambda module, *_: seen.append(module))
    activation_matching(spec, source=source, target=target, batches=x.split(16))
    assert seen == [source, target] * 4


def test_sites_are_where_groups_are_read():
    def names(name, *groups):
        model, spec, _ = network(name)
        return [(site.module, site.at_input) for site in sites(spec, model, groups)]

    assert names("mlp", "h1") == [("2", True)]
    assert names("gqa", "vd") == [("o", True)]
    assert set(names("gqa", "qd")) == {("qkv", False)}
    assert names("resnet", "mid") == [("conv2", True)]
    assert names("experts", "I") == []


def test_one_input_read_by_two_layers_is_counted_once(monkeypatch):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            x = self.first(x).relu()
            return self.a(x) + self.b(x) + self.b(2 * x)

    added, add = [], correlation.Moments.add
    monkeypatch.setattr(correlation.Moments, "add", lambda self, *pair: added.append(self) or add(self, *pair))
    spec = spec_of(
        {"i": (4, (), "input"), "h": 6, "o": (2, (), "output")},
        {f"{n}.weight": ("h", "i") if n == "first" else ("o", "h") for n in ("first", "a", "b")}
        | {"first.bias": ("h",), "a.bias": ("o",), "b.bias": ("o",)},
    )
    source, target = Pair(), Pair()
    correlations(spec, ["h"], source=source, target=target, batches=[torch.randn(9, 4)])
    assert len(added) == 3  # b also reads something else
    added.clear()
    for model in (source, target):
        model.forward = lambda x, m=model: (lambda y: m.a(y) + m.b(y))(m.first(x).relu())
    correlations(spec, ["h"], source=source, target=target, batches=[torch.randn(9, 4)] * 2)
    assert len(added) == 2


@pytest.mark.parametrize("name", NETWORKS)
def test_the_inward_start_alone_finds_what_is_planted(name):
    for seed in range(8):
        source, target, spec, _, p = planted(name, seed)
        chosen = list(spec.free)
        among, ties = families(spec, chosen), _weight_ties(spec, source, target, chosen)
        start = inward(spec, ties, among)
        found = descend(spec, ties, among, seed=0, iterations=10, start=start)
        assert found == p and len(found.report.objective) <= 4
        assert start == p or name != "experts"


def test_the_first_restart_is_the_inward_start(monkeypatch):
    source, target, spec, _, p = planted("experts", 7)
    starts = []
    monkeypatch.setattr(matching, "inward", lambda *args: starts.append(inward(*args)) or starts[-1])
    assert weight_matching(spec, source=source, target=target, restarts=0) != p and not starts
    assert weight_matching(spec, source=source, target=target) == p and len(starts) == 1
    assert weight_matching(spec, source=source, target=target, restarts=3) == p and len(starts) == 2


def test_frozen_inner_groups_cost_nothing(monkeypatch):
    """A rotary head dimension lies inside the head but never moves: no product for every destination."""
    source, target, spec, _, _ = planted("gqa")
    monkeypatch.setattr(torch, "einsum", None)
    assert weight_matching(spec.freeze("qd", "rotary"), source=source, target=target).report.converged


def test_dead_units_are_counted():
    source, target, spec, x, _ = planted("mlp")
    with torch.no_grad():
        for model, dead in ((source, 2), (target, 3)):
            model[0].weight[:dead] = 0
            model[0].bias[:dead] = -1
    found = activation_matching(spec, source=source, target=target, batches=[x])
    assert found.report.groups["h1"].dead == 3 and found.report.groups["h2"].dead == 0
    line = next(line for line in repr(found.report).splitlines() if line.startswith("h1"))
    assert line.split()[1] == "16" and line.split()[-1] == "3"


def test_assign_finds_the_optimum():
    generator = np.random.default_rng(0)
    for _ in range(20):
        score = generator.normal(size=(5, 5))
        best = max(score[np.arange(5), p].sum() for p in map(list, itertools.permutations(range(5))))
        assert score[np.arange(5), assign(score)].sum() == pytest.approx(best)
    order = generator.permutation(80)  # large enough for the reduction
    assert np.array_equal(assign(np.eye(80)[order] * 7 + generator.normal(size=(80, 1))), np.argsort(np.argsort(order)))


def test_bad_input():
    source, target, spec, x = unrelated("mlp")
    pair = {"source": source, "target": target}
    with pytest.raises(ValueError, match="must see at least one batch; received none"):
        activation_matching(spec, batches=[], **pair)
    with pytest.raises(ValueError, match="activations at '2' must be finite; received NaN or infinity"):
        activation_matching(spec, batches=[x * float("nan")], **pair)
    with pytest.raises(ValueError, match="iterations must be 1 or more; received 0"):
        weight_matching(spec, iterations=0, **pair)
    with pytest.raises(SymmetryError, match="must match a group; received 'nothing'"):
        weight_matching(spec, groups="nothing", **pair)
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


SHARES = {  # samples of each batch, for each of two processes; the network of the second has heads and tied inputs
    "uneven": ("gqa", [slice(0, 20), slice(20, 30)], [slice(30, None)]),
    "none": ("attention", [slice(0, 20), slice(20, None)], []),
}


def _one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for case, (name, *shares) in SHARES.items():
        source, target, spec, x = unrelated(name)
        p = activation_matching(spec, source=source, target=target, batches=[x[rows] for rows in shares[rank]])
        np.save(f"{folder}/{case}{rank}.npy", np.concatenate([p.entry(name).reshape(-1) for name in spec.free]))
        np.save(f"{folder}/{case}-score{rank}.npy", [match.matched for match in p.report.groups.values()])
    with pytest.raises(ValueError, match="must see at least one batch; received none"):
        activation_matching(spec, source=source, target=target, batches=[])
    dist.destroy_process_group()


def test_processes_add_up_their_batches(tmp_path):
    torch.multiprocessing.spawn(_one_process, (str(tmp_path),), nprocs=2)
    for case, (name, *shares) in SHARES.items():
        source, target, spec, x = unrelated(name)
        batches = [x[rows] for rows in itertools.chain(*shares)]
        p = activation_matching(spec, source=source, target=target, batches=batches)
        alone = np.concatenate([p.entry(name).reshape(-1) for name in spec.free])
        scores = [match.matched for match in p.report.groups.values()]
        for rank in range(2):
            assert np.array_equal(np.load(tmp_path / f"{case}{rank}.npy"), alone)
            np.testing.assert_allclose(np.load(tmp_path / f"{case}-score{rank}.npy"), scores, rtol=1e-6)


def test_the_order_of_the_batches_does_not_choose_among_equal_units():
    groups, axes = {"i": (9, (), "input"), "h": 64, "o": (3, (), "output")}, {"0": ("h", "i"), "2": ("o", "h")}
    spec = spec_of(groups, {f"{n}.weight": a for n, a in axes.items()} | {f"{n}.bias": a[:1] for n, a in axes.items()})
    for seed in range(5):
        torch.manual_seed(seed)
        source, target = (nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 3)) for _ in range(2))
        for model in (source, target):
            nn.init.constant_(model[0].bias, -1)  # many fire on the same few samples
        batches = list(torch.randn(100, 9).split(7))
        first, *others = (
            activation_matching(spec, source=source, target=target, batches=order)
            for order in (batches, batches[::-1], batches[3:] + batches[:3])
        )
        assert all(other == first for other in others)


def test_routed_tokens_that_do_not_pair_up_are_left_to_the_weights():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(4, 9), nn.Linear(9, 7), nn.Linear(7, 2)

        def forward(self, x):
            x = self.first(x).relu()
            return self.last(self.inner(x[x[:, 0] > x[:, 0].median()][: 3 + int(self.inner.bias[0] > 0)]).tanh())

    groups = {"i": (4, (), "input"), "h": 9, "r": 7, "o": (2, (), "output")}
    axes = {"first": ("h", "i"), "inner": ("r", "h"), "last": ("o", "r")}
    tensors = {f"{n}.weight": a for n, a in axes.items()} | {f"{n}.bias": (a[0],) for n, a in axes.items()}
    spec, source = spec_of(groups, tensors), Routed()
    with torch.no_grad():
        source.inner.bias.copy_(torch.tensor([1, -1, -1, -1, -1, -1, -1.0]))
    p, target = spec.random(0, groups="r"), copy.deepcopy(source)
    permute_(target, p)
    assert activation_matching(spec, source=source, target=target, batches=[torch.randn(40, 4)]) == p


def test_residual_streams_stay_unless_they_are_asked_for():
    from transformers import BertConfig, BertForSequenceClassification

    from hf_lottery import discover
    from hf_lottery.alignment.matching import residual_streams

    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=30, pad_token_id=0
    )
    torch.manual_seed(0)
    source, target = BertForSequenceClassification(config).eval(), BertForSequenceClassification(config).eval()
    spec = discover(source, {"input_ids": torch.randint(1, 30, (2, 9))})
    (stream,) = residual_streams(spec)
    assert stream == "bert.embeddings.word_embeddings.weight[1]"
    assert stream not in matching.weight_matching(spec, source=source, target=target).entries
    assert stream in matching.weight_matching(spec, source=source, target=target, residual=True).entries
    assert stream in matching.weight_matching(spec, source=source, target=target, groups=[stream]).entries
