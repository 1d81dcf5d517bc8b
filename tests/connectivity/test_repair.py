import copy

import pytest
import torch
import torch.distributed as dist
from hand_made import network
from torch import nn
from torch.nn import functional as F

from hf_lottery.connectivity.repair import recalibrate_batch_norm_, repair_


def middle(a: nn.Module, b: nn.Module, alpha: float = 0.5) -> nn.Module:
    model = copy.deepcopy(a)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), b.parameters(), strict=True):
            mine.lerp_(theirs, alpha)
    return model


def statistics(model: nn.Module, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and standard deviation of the outputs of the layers 0 and 2."""
    with torch.no_grad():
        outputs = [model[:1](x), model[:3](x)]
    return [(y.mean(0), y.std(0, correction=0)) for y in outputs]


def test_batch_norms_get_the_mean_over_the_batches():
    model, _, x = network("resnet")
    model.bn0.momentum, model.conv1.training = 0.3, True
    batches = [x[:32], x[32:]]
    recalibrate_batch_norm_(model, batches)
    with torch.no_grad():
        outputs = [model.stem(batch) for batch in batches]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variance = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(model.bn0.running_mean, mean)
    torch.testing.assert_close(model.bn0.running_var, variance)
    assert model.bn0.num_batches_tracked == 2 and model.bn0.momentum == 0.3
    assert not model.bn0.training and model.conv1.training
    again = copy.deepcopy(model)
    recalibrate_batch_norm_(again, batches)
    assert all(torch.equal(again.state_dict()[name], w) for name, w in model.state_dict().items())


def test_dropout_is_off_and_parameters_stay():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    x = torch.randn(50, 3)
    recalibrate_batch_norm_(model, [{"input": x}])
    torch.testing.assert_close(model[1].running_mean, x.mean(0))
    assert model[0].training and torch.equal(model[1].weight, torch.ones(3)) and model[1].weight.grad is None


def test_a_failure_leaves_the_statistics():
    model, _, x = network("resnet")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="must see at least one batch; received none"):
        recalibrate_batch_norm_(model, [])
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm_(model, [x, x[:, :2]])
    with pytest.raises(ValueError, match="must have batch norms with running statistics; received a model without any"):
        recalibrate_batch_norm_(network("mlp")[0], [x])
    assert all(torch.equal(model.state_dict()[name], w) for name, w in before.items())
    assert model.bn0.momentum == 0.1 and not model.bn0.training


@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_repair_reaches_the_interpolated_statistics(alpha):
    (a, _, x), (b, _, _) = network("mlp", 0), network("mlp", 1)
    model = middle(a, b, alpha)
    head = copy.deepcopy(model[4].state_dict())
    before = [copy.deepcopy(end.state_dict()) for end in (a, b)]
    repair_(model, source=a, target=b, batches=[x], alpha=alpha)
    ends = [statistics(end, x) for end in (a, b)]
    for found, one, other in zip(statistics(model, x), *ends, strict=True):
        for got, left, right in zip(found, one, other, strict=True):
            torch.testing.assert_close(got, (1 - alpha) * left + alpha * right, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(model[4].state_dict()[name], w) for name, w in head.items())
    for end, state in zip((a, b), before, strict=True):
        assert all(torch.equal(end.state_dict()[name], w) for name, w in state.items()) and not end[0]._forward_hooks


def test_layers_are_chosen_by_name_and_the_last_is_left_alone_by_default():
    (a, _, x), (b, _, _) = network("mlp", 0), network("mlp", 1)

    def changed(**options):
        model, plain = middle(a, b), middle(a, b)
        repair_(model, source=a, target=b, batches=[x], **options)
        state = plain.state_dict()
        return {name.split(".")[0] for name, w in model.state_dict().items() if not torch.equal(w, state[name])}

    assert changed() == {"0", "2"}
    assert changed(include="[04]") == {"0", "4"} and changed(include="[024]", exclude="2") == {"0", "4"}
    assert changed(exclude="4") == {"0", "2"} and changed(exclude="2") == {"0"}


def test_repair_of_equal_ends_changes_nothing():
    a, _, x = network("mlp")
    model = copy.deepcopy(a)
    repair_(model, source=a, target=a, batches=iter([x]))
    torch.testing.assert_close(model(x), a(x), rtol=1e-6, atol=1e-6)


def test_repair_recalibrates_batch_norms_too():
    (a, _, x), (b, _, _) = network("resnet", 0), network("resnet", 1)
    for end in (a, b):
        recalibrate_batch_norm_(end, [x])
    model, plain = middle(a, b), middle(a, b)
    repair_(model, source=a, target=b, batches=[x], include="depthwise")
    recalibrate_batch_norm_(plain, [x])
    assert torch.equal(model.bn1.running_var, plain.bn1.running_var)  # above the repaired layer
    assert not torch.equal(model.bn2.running_var, plain.bn2.running_var)
    deviations = []
    for net in (a, b, model):
        with torch.no_grad():
            y = net.depthwise(F.relu(net.bn1(net.conv1(F.relu(net.bn0(net.stem(x)))))))
        deviations.append(y.std((0, 2, 3)))
    off = (deviations[2] / ((deviations[0] + deviations[1]) / 2) - 1).abs()
    assert (off < 0.02).sum() >= 9  # a channel that is constant in the middle cannot be rescaled


def test_repair_lowers_the_barrier_of_unrelated_networks():
    """Variance collapse: between unrelated networks the activations shrink; repair gives the spread back."""
    (a, _, x), (b, _, _) = network("mlp", 0), network("mlp", 1)
    model = middle(a, b)
    spread = [net(x).std().item() for net in (a, b, model)]
    repair_(model, source=a, target=b, batches=[x])
    assert spread[2] < 0.7 * min(spread[:2]) and model(x).std().item() > 1.2 * spread[2]


def test_bad_input():
    (a, _, x), (b, _, _) = network("mlp", 0), network("mlp", 1)
    ends = {"source": a, "target": b}
    model = middle(a, b)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]; received 2"):
        repair_(model, batches=[x], alpha=2, **ends)
    message = "must match the name of a linear or convolution layer with a bias; received"
    for options in ({"include": ["0", "1"]}, {"include": "nothing"}, {"exclude": "1"}):
        with pytest.raises(ValueError, match=message):
            repair_(model, batches=[x], **options, **ends)
    for options in ({"include": []}, {"include": "0", "exclude": "0"}, {"exclude": ".*"}):
        with pytest.raises(ValueError, match="include and exclude must leave a layer to repair"):
            repair_(model, batches=[x], **options, **ends)
    with pytest.raises(ValueError, match="must see at least one batch; received none"):
        repair_(model, batches=[], **ends)
    single = nn.Sequential(nn.Linear(6, 3)).double()
    with pytest.raises(ValueError, match="must have a layer with a bias to repair, besides the one that runs last"):
        repair_(single, source=single, target=single, batches=[x])


def test_a_frozen_batch_norm_stays_as_it_is():
    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    model = nn.Sequential(nn.Linear(3, 4), Frozen(4), nn.BatchNorm1d(4))
    model[1].running_mean.fill_(3.0)
    recalibrate_batch_norm_(model, [torch.randn(8, 3)])
    assert model[1].running_mean.tolist() == [3.0] * 4
    assert model[2].running_mean.abs().max() > 0


def _repaired(shares):
    """The states of two networks, one recalibrated and one repaired on batches; of all processes that call it."""
    norms, _, x = network("resnet")
    recalibrate_batch_norm_(norms, [x[rows] for rows in shares])
    (a, _, y), (b, _, _) = network("mlp", 0), network("mlp", 1)
    dense = middle(a, b)
    repair_(dense, source=a, target=b, batches=[y[rows] for rows in shares])
    return norms.state_dict() | dense.state_dict()


SHARES = [[slice(0, 20), slice(20, 30), slice(30, 64)], [slice(0, 20)]]  # batches of both networks: 64 samples


def _one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for case, batches in enumerate(SHARES):  # in the second, one process has none
        torch.save(_repaired(batches[rank::2]), f"{folder}/{case}-{rank}.pt")
    with pytest.raises(ValueError, match="must see at least one batch; received none"):
        _repaired([])
    dist.destroy_process_group()


def test_every_process_has_the_statistics_of_all_batches(tmp_path):
    torch.multiprocessing.spawn(_one_process, (str(tmp_path),), nprocs=2)
    for case, batches in enumerate(SHARES):
        alone = _repaired(batches)
        first, second = (torch.load(tmp_path / f"{case}-{rank}.pt") for rank in range(2))
        assert alone["bn0.num_batches_tracked"] == len(batches)
        for name, tensor in alone.items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], tensor, rtol=1e-6, atol=1e-6)
