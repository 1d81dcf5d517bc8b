"""A moment of training is one moment, whatever number of optimizers makes it."""

import pytest
import torch
from torch import nn, optim

from hf_lottery import Snapshot
from hf_lottery.training.moment import capture_at


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def step(model: nn.Module, *optimizers: optim.Optimizer) -> None:
    model.zero_grad()
    model(torch.randn(8, 4)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def one_of_each(model: nn.Sequential) -> list[optim.Optimizer]:
    return [
        optim.SGD(model[0].parameters(), 0.1),
        optim.Adam(model[1].parameters()),
        optim.AdamW(model[3].parameters()),
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_optimizers_in_turn_count_together(at, count):
    model = network()
    optimizers, states = one_of_each(model)[:count], [Snapshot.capture(model)]
    with capture_at(model, at) as captured:
        for _ in range(4):
            step(model, *optimizers)
            states.append(Snapshot.capture(model))
    assert captured().sha256() == states[at].sha256()
    assert captured().step == at


def test_optimizers_that_step_inside_backward_count_together():
    model = network()
    states, optimizers = [], {parameter: optim.SGD([parameter], 0.1) for parameter in model.parameters()}
    for parameter, optimizer in optimizers.items():
        parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    with capture_at(model, 2) as captured:
        for _ in range(3):
            step(model)
            states.append(Snapshot.capture(model))
    assert captured().sha256() == states[1].sha256()


class Clipped(optim.SGD):
    """Steps with the step of its parent."""

    def step(self, closure=None):
        return super().step(closure)


class Averaging(optim.Optimizer):
    """Makes two steps of another optimizer, and averages its weights afterwards."""

    def __init__(self, inner: optim.Optimizer):
        self.inner = inner
        super().__init__(inner.param_groups, {})
        self.slow = [parameter.detach().clone() for parameter in self.parameters()]

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.inner.step()
        for slow, parameter in zip(self.slow, self.parameters(), strict=True):
            parameter.copy_(slow.lerp_(parameter, 0.5))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [lambda p: Clipped(p, 0.1), lambda p: Averaging(optim.SGD(p, 0.1))])
def test_a_step_inside_a_step_is_a_part_of_it(make, compiled):
    model = network()
    optim.SGD(model.parameters(), 0.1)  # from now on torch announces the steps of SGD, also those of a subclass
    states, optimizer = [], make(model.parameters())
    if compiled:
        optimizer.step = torch.compile(optimizer.step, backend="eager")
    with capture_at(model, 2) as captured:
        for _ in range(4):
            step(model, optimizer)
            states.append(Snapshot.capture(model))
    assert captured().sha256() == states[1].sha256()


def head_then_all(model, optimizers):
    for _ in range(3):
        step(model, optimizers[0])
    for _ in range(3):
        step(model, *optimizers)


def every_second_step(model, optimizers):
    for i in range(6):
        step(model, *optimizers[: 1 + i % 2])


def a_new_optimizer_each_epoch(model, optimizers):
    for _ in range(3):
        optimizer = optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            step(model, optimizer)


@pytest.mark.parametrize(
    ("train", "passed", "refused"),
    [(head_then_all, 3, 4), (every_second_step, 1, 2), (a_new_optimizer_each_epoch, 1, 2)],
)
def test_optimizers_out_of_turn_are_refused_unless_the_moment_has_passed(train, passed, refused):
    model = network()
    with capture_at(model, passed) as captured:
        train(model, one_of_each(model)[:2])
    assert captured().step == passed
    with pytest.raises(ValueError, match=r"must step in turn .* received \w+ out of turn"), capture_at(model, refused):
        train(model, one_of_each(model)[:2])


def test_steps_after_the_block_do_not_count():
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.1)
    with capture_at(model, 2) as captured:
        step(model, optimizer)
    step(model, optimizer)
    with pytest.raises(ValueError, match="received 2 of 1"):
        captured()


def test_a_step_that_training_ends_within_is_not_reached():
    model = network()
    first, second, _ = one_of_each(model)
    with capture_at(model, 2) as captured:
        step(model, first, second)
        step(model, first)
    with pytest.raises(ValueError, match="must lie within training"):
        captured()
