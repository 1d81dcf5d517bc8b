"""learned_matching(): the loss in the middle of the line falls and never rises, and nothing else changes."""

import copy
import itertools
from functools import cache

import numpy as np
import pytest
import torch
from hand_made import NETWORKS, planted
from torch import nn
from torch.nn import functional as F

from hf_lottery import SpecMismatchError, SymmetryError, permute_
from hf_lottery.alignment import Match, learned_matching, weight_matching
from hf_lottery.alignment.assignment import families
from hf_lottery.alignment.coordinate_descent import measured
from hf_lottery.alignment.matching import weight_ties

FALLS = {"mlp": 1.0, "gqa": 0.9, "experts": 0.7, "square": 0.8, "resnet": 1.0}


def with_batch_statistics(model):
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return model


def loss(model, batch):
    logits = model(batch[0])
    return F.cross_entropy(logits if logits.ndim == 2 else logits.mean(1), batch[1])


@cache
def trained(name):
    """Make two trained networks of different seeds: source, target, spec, batches."""
    networks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, spec, shape = NETWORKS[name]()
        networks.append(model)
    torch.manual_seed(5)
    x, sides = torch.randn(320, *shape), torch.randn(2, int(np.prod(shape)))
    y = (x.flatten(1) @ sides.T > 0).sum(1)
    batches = list(zip(x.split(80), y.split(80), strict=True))
    for model in networks:
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for batch in batches * 20:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
        optimizer.zero_grad()
        model.eval()
    return *networks, spec, batches


def task(name, **options):
    source, target, spec, batches = trained(name)
    options = {"batches": batches, "loss": loss, "residual": True, "epochs": 3, **options}
    return spec, {"source": source, "target": target, **options}


def middle(permutation, source, target, batches):
    """The mean loss in the middle, by other means than the function's."""
    model = copy.deepcopy(source)
    permute_(model, permutation)
    with torch.no_grad():
        for w, other in zip(model.parameters(), target.parameters(), strict=True):
            w.copy_((w + other) / 2)
        return np.mean([loss(with_batch_statistics(model), batch).item() for batch in batches])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_planted_permutation_stays(name):
    source, target, spec, x, p = planted(name)
    with torch.no_grad():
        y = with_batch_statistics(copy.deepcopy(target))(x)
    found = learned_matching(
        spec,
        source=source,
        target=target,
        batches=[(x, y)],
        loss=lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
        epochs=5,
        residual=True,
    )
    assert found.permutation == p and found.report.converged
    weights = weight_matching(spec, source=source, target=target, residual=True).report
    assert found.report.groups.keys() == weights.groups.keys()
    for group, match in found.report.groups.items():
        assert match.matched == pytest.approx(weights.groups[group].matched) and match.moved == 1.0


@pytest.mark.parametrize("name", FALLS)
def test_the_loss_in_the_middle_falls(name):
    source, target, spec, batches = trained(name)
    found = learned_matching(spec, **task(name, epochs=8, learning_rate=0.05)[1])
    weights = weight_matching(spec, source=source, target=target, residual=True)
    start, end = (middle(match.permutation, source, target, batches) for match in (weights, found))
    objective = found.report.objective
    assert -objective[0] == pytest.approx(start, rel=1e-4) and -objective[-1] == pytest.approx(end, rel=1e-4)
    assert list(objective) == sorted(objective) and len(objective) == 9
    assert found.report.converged == (objective[-1] == objective[-2])
    assert end <= FALLS[name] * start


@pytest.mark.parametrize("name", ["resnet", "gqa"])
def test_the_seed_decides_and_nothing_else_changes(name):
    spec, options = task(name)
    networks = options["source"].train(), options["target"]
    before = [copy.deepcopy(model.state_dict()) for model in networks]

    def noisy(model, batch):
        assert not model.training and model not in networks
        return loss(model, (batch[0] + 0.3 * torch.randn_like(batch[0]), batch[1]))

    found = []
    for draws, seed in enumerate((0, 0, 1)):
        torch.manual_seed(draws)
        state = torch.get_rng_state()
        with torch.no_grad():
            found.append(learned_matching(spec, **{**options, "loss": noisy}, seed=seed))
        assert torch.equal(state, torch.get_rng_state())
    assert found[0] == found[1] and found[0].report.objective != found[2].report.objective
    for model, state in zip(networks, before, strict=True):
        assert all(torch.equal(model.state_dict()[key], w) for key, w in state.items())
        assert all(w.grad is None and w.requires_grad for w in model.parameters())
    assert networks[0].training and not networks[1].training
    networks[0].eval()


def test_frozen_weights_learn_too():
    spec, options = task("square")
    found = learned_matching(spec, **options)
    frozen = {which: copy.deepcopy(options[which]).requires_grad_(False) for which in ("source", "target")}
    assert learned_matching(spec, **options | frozen) == found


@pytest.mark.parametrize(
    ("start", "kept", "held_out"),
    [*itertools.product([None, 3], [{}, {"include": "kv"}, {"exclude": ["vd"]}], [0, 1])],
)
def test_options_in_pairs(start, kept, held_out):
    spec, options = task("gqa", epochs=1, **kept)
    start = None if start is None else spec.random(start)
    measured_on = options["batches"][:held_out] or options["batches"]
    found = learned_matching(spec, start=start, held_out=measured_on if held_out else None, **options)
    moving = set(spec.select(kept.get("include"), exclude=kept.get("exclude"))) & set(spec.free)
    assert set(found.report.groups) == moving
    for name in set(spec.free) - moving:
        assert (found.permutation.entry(name) == (start or spec.identity()).entry(name)).all()
    pair = options["source"], options["target"], measured_on
    assert -found.report.objective[-1] == pytest.approx(middle(found.permutation, *pair), rel=1e-4)
    if start is not None:
        assert -found.report.objective[0] == pytest.approx(middle(start, *pair), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    spec, options = task("square", epochs=8, learning_rate=0.05)
    halves = {which: copy.deepcopy(options[which]).to(dtype) for which in ("source", "target")}
    found = learned_matching(
        spec, **options | halves | {"loss": lambda model, batch: loss(model, (batch[0].to(dtype), batch[1])).float()}
    )
    assert np.isfinite(found.report.objective).all()
    assert found.report.objective[0] < found.report.objective[-1]


def test_streams_stay_by_default(tmp_path):
    spec, options = task("gqa", residual=None, epochs=1)
    found = learned_matching(spec, **options)
    left_out = weight_matching(spec, source=options["source"], target=options["target"]).report.left_out
    assert found.report.left_out == left_out
    found.save_pretrained(tmp_path)
    assert Match.from_pretrained(tmp_path, spec) == found


@pytest.mark.parametrize("name", NETWORKS)
def test_any_permutation_can_be_measured(name):
    source, target, spec, _, _ = planted(name)
    groups, p = list(spec.free), spec.random(4)
    ties = weight_ties(spec, source, target, groups)
    found = measured(ties, families(spec, groups), p)
    assert set(found) == set(groups)
    for group, match in found.items():
        count = {tie: sum(slot.group == group for slot in tie.slots) for tie in ties}
        norm = sum(n * tie.norm for tie, n in count.items())
        without = {other: entry for other, entry in p.entries.items() if other != group}
        assert match.matched * norm == pytest.approx(sum(n * tie.value(p.entries) for tie, n in count.items()))
        if max(count.values()) == 1:  # else the score is that of a linearisation
            assert match.identity * norm == pytest.approx(sum(n * tie.value(without) for tie, n in count.items()))
        assert match.moved == (match.size > 1 and p.entry(group).shape[-1] > 1) and match.size == p.entry(group).size


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source": {}}, TypeError, "the source must be a model, which can be run; received dict"),
        ({"target": None}, TypeError, "the target must be a model, which can be run; received NoneType"),
        ({"batches": []}, ValueError, "batches must hold at least one batch; received none"),
        ({"held_out": []}, ValueError, "batches must hold at least one batch; received none"),
        ({"batches": iter([])}, TypeError, "batches must be gone through many times; received a list_iterator"),
        ({"held_out": iter([])}, TypeError, "batches must be gone through many times; received a list_iterator"),
        ({"epochs": 0}, ValueError, "epochs must be 1 or more; received 0"),
        ({"iterations": 0}, ValueError, "iterations must be 1 or more; received 0"),
        ({"start": 3}, TypeError, "start must be a permutation; received int"),
        ({"include": "nothing"}, SymmetryError, "nothing"),
        ({"target": nn.Linear(2, 2)}, SpecMismatchError, "must"),
        ({"loss": lambda model, batch: 1.0}, ValueError, "one finite number; received float"),
        ({"loss": lambda model, batch: model(batch[0])[0]}, ValueError, "one finite number; received \\["),
        ({"loss": lambda model, batch: loss(model, batch) / 0}, ValueError, "one finite number; received \\[inf\\]"),
    ],
)
def test_what_cannot_be_learned_is_refused(changes, error, message):
    spec, options = task("mlp")
    with pytest.raises(error, match=message):
        learned_matching(spec, **options | changes)
