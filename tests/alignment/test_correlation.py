"""Correlations of activations: where they are observed, and that batches and processes add up."""

import copy
import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hand_made import network, planted, spec_of, unrelated
from process_group import run_on
from torch import nn

from hf_lottery.alignment import correlation, matching, moments
from hf_lottery.alignment.correlation import correlations, sites
from hf_lottery.symmetry.permutation import Permutation, permute_

# The hand-made networks are to be matched whole.
activation_matching = partial(matching.activation_matching, residual=True)


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
        assert activation_matching(spec, batches=batches, **pair).permutation == p
    assert activation_matching(spec, batches=[{"x": x}], forward=lambda m, b: m(b["x"]), **pair).permutation == p
    wrapped = spec_of(
        {g.name: (g.size, g.parents, g.frozen) for g in spec.groups.values()},
        {f"inner.{n}": tuple(" ".join(a.leaves) for a in b[0].axes) for n, b in spec.tensors.items()},
    )
    pair = {name: Dictionary(model) for name, model in pair.items()}
    found = activation_matching(wrapped, batches=[{"inputs": x}], **pair).permutation
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

    added, add = [], moments.Moments.add
    monkeypatch.setattr(moments.Moments, "add", lambda self, *pair: added.append(self) or add(self, *pair))
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


SHARES = {  # samples of each batch, for each of two processes; the network of the second has heads and tied inputs
    "uneven": ("gqa", [slice(0, 20), slice(20, 30)], [slice(30, None)]),
    "none": ("attention", [slice(0, 20), slice(20, None)], []),
}


def _one_process(rank: int):
    """Match on this process's share of the batches: for each case the entries and the scores."""
    found = {}
    for case, (name, *shares) in SHARES.items():
        source, target, spec, x = unrelated(name)
        batches = [x[rows] for rows in shares[rank]]
        match = activation_matching(spec, source=source, target=target, batches=batches)
        found[case] = match.permutation.entries, [group.matched for group in match.report.groups.values()]
    with pytest.raises(ValueError, match="must see at least one batch; received none"):
        activation_matching(spec, source=source, target=target, batches=[])
    return found


@pytest.mark.slow
def test_processes_add_up_their_batches():
    both = run_on(2, _one_process)
    for case, (name, *shares) in SHARES.items():
        source, target, spec, x = unrelated(name)
        batches = [x[rows] for rows in itertools.chain(*shares)]
        alone = activation_matching(spec, source=source, target=target, batches=batches)
        for entries, scores in (found[case] for found in both):
            assert Permutation(spec, entries) == alone.permutation
            np.testing.assert_allclose(scores, [group.matched for group in alone.report.groups.values()], rtol=1e-6)


def test_the_order_of_the_batches_does_not_choose_among_equal_units():
    groups, axes = {"i": (9, (), "input"), "h": 64, "o": (3, (), "output")}, {"0": ("h", "i"), "2": ("o", "h")}
    spec = spec_of(groups, {f"{n}.weight": a for n, a in axes.items()} | {f"{n}.bias": a[:1] for n, a in axes.items()})
    for seed in range(5):
        torch.manual_seed(seed)
        source, target = (nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 3)) for _ in range(2))
        for model in (source, target):
            nn.init.constant_(model[0].get_parameter("bias"), -1)  # many fire on the same few samples
        batches = list(torch.randn(100, 9).split(7))
        first, *others = (
            activation_matching(spec, source=source, target=target, batches=order).permutation
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
    p, target = spec.random(0, include="^r$"), copy.deepcopy(source)
    permute_(target, p)
    assert activation_matching(spec, source=source, target=target, batches=[torch.randn(40, 4)]).permutation == p


@pytest.mark.parametrize("name", ["mlp", "resnet", "gqa", "attention"])
def test_float32_finds_the_permutation_of_float64(name):
    source, target, spec, x = unrelated(name)
    pair = {"source": source, "target": target}
    exact = activation_matching(spec, **pair, batches=x.split(16))
    source.float()
    target.float()
    assert activation_matching(spec, **pair, batches=x.float().split(16)).permutation == exact.permutation


def shapes_added(monkeypatch):
    shapes, add = [], moments.Moments.add
    monkeypatch.setattr(moments.Moments, "add", lambda *args: shapes.append(tuple(args[1].values.shape)) or add(*args))
    return shapes


def test_tokens_are_the_same_in_both_networks_and_at_all_places(monkeypatch):
    source, target, spec, x, p = planted("mlp", noise=0)
    pair = {"source": source, "target": target}
    with torch.no_grad():
        rows = [model[:2](x) for model in (target, source)]
    sample = correlation.Sample(9, seed=3, batch=2)
    assert torch.equal(*(sample(values.sum(1)) for values in (x, x.clone())))
    torch.testing.assert_close(sample(rows[0]), sample(rows[1])[:, list(p.entry("h1"))])
    assert not torch.equal(sample(x), correlation.Sample(9, seed=3, batch=3)(x))
    assert torch.equal(sample(x[:9]), x[:9])
    shapes = shapes_added(monkeypatch)
    whole = activation_matching(spec, **pair, batches=x.split(16))
    assert {n for n, _ in shapes} == {16}
    shapes.clear()
    assert activation_matching(spec, **pair, batches=x.split(16), tokens=16).permutation == whole.permutation
    shapes.clear()
    for one_place, count in ((False, 8), (True, 8)):
        activation_matching(spec, **pair, batches=x.split(16), tokens=5, one_place=one_place)
        assert {n for n, _ in shapes} == {5} and len(shapes) == count
        shapes.clear()
    with pytest.raises(ValueError, match="tokens must be at least 1, or None for all of them; received 0"):
        activation_matching(spec, **pair, batches=[x], tokens=0)


def test_maps_are_compared_whole(monkeypatch):
    source, target, spec, x, _ = planted("resnet")
    shapes = shapes_added(monkeypatch)
    activation_matching(spec, source=source, target=target, batches=[x], tokens=2)
    assert {n for n, _ in shapes} - {2} and min(n for n, _ in shapes if n != 2) >= len(x)


@pytest.mark.parametrize("name", ["resnet", "gqa", "attention"])
def test_one_place_for_each_group(name, monkeypatch):
    source, target, spec, x, _ = planted(name, noise=0)
    pair = {"source": source, "target": target, "batches": [x]}
    shapes = shapes_added(monkeypatch)
    every = activation_matching(spec, **pair).permutation
    places = len(shapes)
    shapes.clear()
    assert activation_matching(spec, **pair, one_place=True).permutation == every
    assert 0 < len(shapes) <= min(places, len(spec.free))


def test_the_place_kept_is_the_last():
    model, spec, _ = network("resnet")
    groups = [name for name, group in spec.free.items() if group.frozen is None]
    found = sites(spec, model, groups)
    kept = correlation._last_of_each(found, groups)
    for group in groups:
        at = [n for n, site in enumerate(found) if group in site.axis.leaves]
        assert not at or found[at[-1]] in kept


class Shuffled(nn.Module):
    """Units that another layer reads in an order of its own, by two layers and from one tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x).relu()
        return self.a(x) + self.b(x)


def test_indices_are_uploaded_once_and_a_tensor_read_twice_is_copied_once(monkeypatch):
    spec = spec_of(
        {"i": (4, (), "input"), "h": 6, "o": (2, (), "output")},
        {f"{n}.weight": ("h", "i") if n == "first" else ("o", "h") for n in ("first", "a", "b")}
        | {"first.bias": ("h",), "a.bias": ("o",), "b.bias": ("o",)},
    )
    source, target = Shuffled(), Shuffled()
    order = np.array([3, 1, 2, 0, 5, 4])
    found = [site._replace(axis=replace(site.axis, positions=order)) for site in sites(spec, source, ["h"])]
    monkeypatch.setattr(correlation, "sites", lambda *_: found)
    copies, copy_of = [], correlation.observe
    monkeypatch.setattr(correlation, "observe", lambda *args: copies.append(0) or copy_of(*args))
    uploads, upload = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: uploads.append(0) or upload(array))
    ((_, matrix),) = correlations(spec, ["h"], source=source, target=target, batches=[torch.randn(9, 4)] * 3)
    assert len(copies) == 6 and len(uploads) == 1
    monkeypatch.undo()
    ((_, plain),) = correlations(spec, ["h"], source=source, target=target, batches=[torch.randn(9, 4)] * 3)
    assert matrix.shape == plain.shape
