"""The straight line between two networks."""

import copy
import math

import pytest
import torch
from notebook_view import as_html
from small_task import vit
from torch import nn
from torch.nn import functional as F
from torch.profiler import profile

from hf_lottery import (
    MaskMismatchError,
    SignedMask,
    Snapshot,
    discover,
    error_barrier,
    magnitude,
    permute_,
    prune,
    recalibrated,
    score_weights,
    weight_matching,
)
from hf_lottery.connectivity.barrier import Barrier, sgd_noise_stability
from hf_lottery.connectivity.repair import recalibrate_batch_norm_, repair_, repaired


def net(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].running_mean.normal_()
    model[1].num_batches_tracked.fill_(seed)
    return model


def test_every_parameter_and_statistic_takes_part_and_all_is_put_back():
    a, b = net(1), net(2)
    before, other = Snapshot.capture(a), Snapshot.capture(b)
    seen = []

    def evaluate(model):
        assert model is a
        seen.append(Snapshot.capture(model))
        return float(len(seen))

    found = error_barrier(a, b, evaluate, points=3)
    assert found == Barrier((0.0, 0.5, 1.0), (1.0, 2.0, 3.0))
    for name, start in before.tensors.items():
        if start.is_floating_point():
            torch.testing.assert_close(seen[1].tensors[name], (start + other.tensors[name]) / 2)
            assert torch.equal(seen[0].tensors[name], start) and torch.equal(seen[2].tensors[name], other.tensors[name])
        else:
            assert all(torch.equal(point.tensors[name], start) for point in seen)
    assert Snapshot.capture(a).sha256() == before.sha256()
    assert Snapshot.capture(b).sha256() == other.sha256()


def test_a_network_has_no_barrier_to_itself():
    a, x = net(1).eval(), torch.randn(16, 3)
    found = error_barrier(a, copy.deepcopy(a), lambda model: model(x).square().mean().item())
    assert len(found.errors) == 11
    assert max(found.errors) - min(found.errors) <= 1e-6
    assert abs(found.barrier) <= 1e-6


def test_both_baselines():
    bump = Barrier((0.0, 0.25, 0.5, 0.75, 1.0), (1.0, 4.0, 3.0, 3.0, 3.0))
    assert bump.barrier == 2.0
    assert bump.linear_barrier == 2.5
    flat = Barrier((0.0, 0.5, 1.0), (3.0, 2.0, 1.0))
    assert flat.barrier == 1.0
    assert flat.linear_barrier == 0.0


def test_the_first_network_is_back_after_an_error():
    a, b = net(1), net(2)
    before = Snapshot.capture(a).sha256()
    values = iter([0.0])
    with pytest.raises(StopIteration):
        error_barrier(a, b, lambda _: next(values))
    assert Snapshot.capture(a).sha256() == before


def test_networks_that_cannot_be_joined():
    with pytest.raises(ValueError, match="points must be at least 2, the two ends; received 1"):
        error_barrier(net(1), net(2), lambda _: 0.0, points=1)
    with pytest.raises(MaskMismatchError, match="'0.bias' is in one only"):
        error_barrier(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2), lambda _: 0.0)
    with pytest.raises(
        MaskMismatchError, match=r"'weight' must have one shape in both networks; received \[2, 3\] and"
    ):
        error_barrier(nn.Linear(3, 2), nn.Linear(2, 2), lambda _: 0.0)


def task(n=256):
    """Images of one channel and their labels: which quarter is brightest."""
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return x, x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((1, 3, 5)).flatten(1).argmax(1)


def convolutional(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(108, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


def logits(model, x):
    out = model(x)
    return getattr(out, "logits", out)


def train(model, order=0, steps=60):
    x, y = task()
    generator = torch.Generator().manual_seed(order)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model.train()
    for _ in range(steps):
        batch = torch.randperm(len(x), generator=generator)[:64]
        optimizer.zero_grad()
        F.cross_entropy(logits(model, x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def loss(model):
    x, y = task()
    return F.cross_entropy(logits(model.eval(), x), y)


@pytest.mark.parametrize("make", [convolutional, lambda seed: vit(seed, num_labels=4)], ids=["convolutions", "vit"])
def test_the_barrier_to_a_permuted_network_is_gone_after_alignment(make):
    a = train(make(1))
    spec = discover(a, (task(4)[0],))
    b = copy.deepcopy(a)
    permute_(b, spec.random(0))
    assert error_barrier(a, b, loss).barrier > 0.3
    permute_(b, weight_matching(spec, source=b, target=a, residual=True).permutation)
    found = error_barrier(a, b, loss)
    assert abs(found.barrier) <= 1e-5 and max(found.errors) - min(found.errors) <= 1e-5


def test_a_network_has_no_barrier_to_itself_whatever_the_repair():
    a, x = train(convolutional(1)), [task()[0]]
    same = copy.deepcopy(a)
    before = Snapshot.capture(a).sha256()
    for b in (a, same):
        for repair in (None, recalibrated(x), repaired(a, b, x)):
            found = error_barrier(a, b, loss, repair=repair)
            assert max(found.errors) - min(found.errors) <= 1e-6
            assert Snapshot.capture(a).sha256() == before == Snapshot.capture(b).sha256()


@pytest.mark.parametrize("kind", ["recalibrated", "repaired"])
def test_every_point_is_repaired_the_ends_included(kind):
    a, b, x = train(convolutional(1)), train(convolutional(2)), [task()[0]]
    ends = copy.deepcopy(a), copy.deepcopy(b)
    seen, expected = [], []
    found = error_barrier(
        a, b, lambda model: (seen.append(Snapshot.capture(model)), loss(model))[1], points=4,
        repair=recalibrated(x) if kind == "recalibrated" else repaired(a, b, iter(x)),
    )  # fmt: skip
    for alpha in found.alphas:
        model = copy.deepcopy(ends[0])
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), ends[1].parameters(), strict=True):
                mine.lerp_(theirs, alpha)
        if kind == "recalibrated":
            recalibrate_batch_norm_(model, x)
        else:
            repair_(model, source=ends[0], target=ends[1], batches=x, alpha=alpha)
        expected.append(loss(model).item())
        for name, tensor in Snapshot.capture(model).tensors.items():
            torch.testing.assert_close(seen[len(expected) - 1].tensors[name], tensor, msg=f"{name} at {alpha}")
    assert found.errors == pytest.approx(expected, abs=1e-5)
    if kind == "repaired":
        assert found.barrier < error_barrier(a, b, loss, points=4).barrier


def test_every_parameter_of_a_transformer_takes_part():
    a, b = vit(1), vit(2)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.add_(torch.randn_like(parameter))
    seen = []
    error_barrier(a, b, lambda model: seen.append(Snapshot.capture(model)) or 0.0, points=3)
    named = dict(a.named_parameters())
    assert any("cls_token" in name for name in named) and any("layernorm" in name for name in named)
    for name, parameter in named.items():
        middle = (parameter + b.get_parameter(name)).detach() / 2
        torch.testing.assert_close(seen[1].tensors[name], middle)
        assert not torch.equal(seen[1].tensors[name], parameter)


def allocated(recorder):
    return sum(max(event.self_cpu_memory_usage, 0) for event in recorder.key_averages())


def test_interpolation_allocates_nothing():
    running, found = [], []

    def evaluate(_):  # the profiler runs from the end of one evaluation to the start of the next
        if running:
            running[-1].__exit__(None, None, None)
            found.append(allocated(running[-1]))
        if len(found) < 3:
            running.append(profile(profile_memory=True))
            running[-1].__enter__()
        return 0.0

    error_barrier(nn.Linear(300, 300), nn.Linear(300, 300), evaluate, points=4)
    assert found == [0, 0, 0]
    with profile(profile_memory=True) as recorder:
        torch.zeros(100)
    assert allocated(recorder) >= 400


def test_a_tied_tensor_is_written_once_and_must_be_tied_in_both():
    def pair(tied):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        if tied:
            model[1].weight = nn.Parameter(model[0].weight.data)  # another parameter, the same memory
        return model

    a, b = pair(True), pair(True)
    versions = []
    error_barrier(a, b, lambda model: versions.append(model[0].weight._version + model[1].weight._version) or 0.0)
    assert set(torch.tensor(versions).diff().tolist()) == {1}
    before = Snapshot.capture(a).sha256()
    with pytest.raises(MaskMismatchError, match=r"'1.weight' must be tied to '0.weight' in both networks"):
        error_barrier(a, pair(False), lambda _: 0.0)
    assert Snapshot.capture(a).sha256() == before


def test_networks_that_share_a_tensor():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.weight = a.weight
    before, seen = a.weight.tolist(), []

    def spoil(model, alpha):
        seen.append(model.weight.tolist())
        with torch.no_grad():
            model.weight.add_(1)

    error_barrier(a, b, lambda _: 0.0, points=3, repair=spoil)
    assert seen == [before] * 3 and a.weight.tolist() == before


def test_equal_infinities_stay():
    models = [nn.Linear(2, 2) for _ in range(2)]
    for model in models:
        model.register_buffer("causal", torch.tensor([0.0, -math.inf]))
    seen = []
    error_barrier(*models, lambda model: seen.append(model.causal.tolist()) or 0.0, points=3)
    assert seen == [[0.0, -math.inf]] * 3


def test_an_error_that_is_no_number_is_not_overlooked():
    lost = Barrier((0.0, 0.5, 1.0), (1.0, math.nan, 2.0))
    assert math.isnan(lost.barrier) and math.isnan(lost.linear_barrier)


def test_curve_and_print():
    found = Barrier((0.0, 0.5, 1.0), (1.0, 4.0, 2.0))
    assert found.curve == ((0.0, 1.0), (0.5, 4.0), (1.0, 2.0))
    assert repr(found) == "Barrier(2.5: errors 1 and 2 at the ends, 4 at most, 3 points)"
    assert "<td>0.5</td><td>4</td>" in as_html(found)


def test_stability_from_one_state():
    state, orders = convolutional(1), []

    def run(model, i):
        orders.append(i)
        train(model, order=i, steps=5)

    found = sgd_noise_stability(lambda i: copy.deepcopy(state), run, loss, points=5)
    ends = [train(copy.deepcopy(state), order=i, steps=5) for i in range(2)]
    assert orders == [0, 1] and found == error_barrier(*ends, loss, points=5)
    assert found.errors[0] != found.errors[-1]
    again = sgd_noise_stability(lambda i: copy.deepcopy(state), lambda m, _: train(m, steps=5), loss, points=5)
    assert abs(again.barrier) <= 1e-6


def test_stability_of_a_signed_mask_on_two_initializations():
    winner = train(convolutional(1))
    matrices = {name: p for name, p in winner.named_parameters() if p.ndim > 1}
    signed = SignedMask.from_model(winner, prune(score_weights(matrices, magnitude), 0.5))
    starts = []

    def start(i):
        model = convolutional(10 + i)
        signed.transfer_(model)
        starts.append(copy.deepcopy(model))
        return model

    found = sgd_noise_stability(start, lambda model, i: None, loss, points=3)
    assert not torch.equal(starts[0][0].weight, starts[1][0].weight)
    assert torch.equal(starts[0][0].weight.sign(), starts[1][0].weight.sign())
    assert found == error_barrier(*starts, loss, points=3)


def test_runs_that_would_train_one_network_twice():
    model, trained = nn.Linear(2, 2), []
    with pytest.raises(ValueError, match="must give each run a network of its own; received two that share tensors"):
        sgd_noise_stability(lambda i: model, lambda m, i: trained.append(i), lambda _: 0.0)
    with pytest.raises(ValueError, match="points must be at least 2"):
        sgd_noise_stability(lambda i: nn.Linear(2, 2), lambda m, i: trained.append(i), lambda _: 0.0, points=1)
    assert trained == []
