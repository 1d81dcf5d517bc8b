"""Pruned weights are zero after every step, wherever the gradient came from and whatever was written from outside."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn, optim
from torch.func import functional_call, grad

from hf_lottery import Mask, keep_sparse

STEPS = 3
MAKE: dict[str, Callable[..., optim.Optimizer]] = {
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, fused=True),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.01),
    "muon": lambda p: optim.Muon([q for q in p if q.ndim == 2], lr=0.1),
}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))


def mask_for(model: nn.Module) -> Mask:
    return Mask({n: torch.rand(p.shape) > 0.7 for n, p in model.named_parameters() if p.ndim > 1})


def alive(model: nn.Module, mask: Mask) -> int:
    weights = dict(model.named_parameters())
    return sum(int((weights[name].detach()[~entry] != 0).sum()) for name, entry in mask.items())


def loss(output: Tensor) -> Tensor:
    return output.square().sum()


def by_autograd_grad(model: nn.Module, optimizer: optim.Optimizer) -> None:
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(model(torch.randn(4, 10))), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def by_func_grad(model: nn.Module, optimizer: optim.Optimizer) -> None:
    x = torch.randn(4, 10)
    parameters = dict(model.named_parameters())
    gradients = grad(lambda p: loss(functional_call(model, p, (x,))))({n: p.detach() for n, p in parameters.items()})
    for name, parameter in parameters.items():
        parameter.grad = gradients[name]


def with_noise(model: nn.Module, optimizer: optim.Optimizer) -> None:
    loss(model(torch.randn(4, 10))).backward()
    for parameter in model.parameters():
        parameter.grad.add_(torch.randn_like(parameter))


def with_data_written(model: nn.Module, optimizer: optim.Optimizer) -> None:
    loss(model(torch.randn(4, 10))).backward()
    for parameter in model.parameters():
        parameter.data.add_(0.1)  # no version counter sees this
        parameter.grad.data.add_(0.1)


def with_state_written(model: nn.Module, optimizer: optim.Optimizer) -> None:
    loss(model(torch.randn(4, 10))).backward()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.ndim == 2:
                value.add_(0.1)


WAYS = [by_autograd_grad, by_func_grad, with_noise, with_data_written, with_state_written]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MAKE)
def test_pruned_weights_are_zero_after_every_step(name, way, packed):
    model = network()
    mask, optimizer = mask_for(model), MAKE[name](list(model.parameters()))
    with keep_sparse(model, mask, packed=packed):
        for _ in range(STEPS):
            way(model, optimizer)
            optimizer.step()
            assert not alive(model, mask)
            optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_an_optimizer_that_mixes_gradients_gets_none_of_pruned_weights(name):
    """Kept weights are the same whether the gradients of pruned weights are noise or zero."""
    results = []
    for noise in (False, True):
        model = network()
        torch.manual_seed(2)
        mask, optimizer = mask_for(model), MAKE[name](list(model.parameters()))
        with keep_sparse(model, mask):
            for parameter_name, parameter in model.named_parameters():
                parameter.grad = torch.randn_like(parameter)
                if noise and parameter_name in mask:
                    parameter.grad[~mask[parameter_name]] += 3
            optimizer.step()
        results.append(model[0].weight)
    assert torch.equal(*results)


@pytest.mark.parametrize("before", [False, True])
def test_optimizers_that_step_inside_backward(before):
    model = network()
    mask = mask_for(model)
    optimizers = {parameter: optim.Adam([parameter], lr=0.01) for parameter in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    handle = None if before else keep_sparse(model, mask)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with handle or keep_sparse(model, mask):
        for _ in range(STEPS):
            loss(model(torch.randn(4, 10))).backward()
            assert not alive(model, mask)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("make", [lambda p: optim.SparseAdam(p, lr=0.1), lambda p: optim.SGD(p, lr=0.1)])
def test_sparse_gradients_are_masked_too(make, packed):
    model = nn.Embedding(10, 4, sparse=True)
    mask, optimizer = mask_for(model), make(list(model.parameters()))
    with keep_sparse(model, mask, packed=packed):
        for _ in range(STEPS):
            model(torch.tensor([1, 7, 7, 2])).sum().backward()
            gradient = model.weight.grad
            assert gradient is not None and gradient.is_sparse
            expected = torch.tensor([1.0, 1.0, 2.0])[:, None] * mask["weight"][[1, 2, 7]]
            assert torch.equal(gradient.coalesce().values(), expected)
            optimizer.step()
            assert not alive(model, mask)
            optimizer.zero_grad()


def test_a_compiled_step():
    model = network()
    mask, optimizer = mask_for(model), optim.AdamW(model.parameters(), lr=0.01)
    step = torch.compile(optimizer.step, backend="eager")
    with keep_sparse(model, mask):
        for _ in range(2):
            with_noise(model, optimizer)
            step()
            assert not alive(model, mask)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64, torch.complex128])
def test_every_kind_of_number(dtype, packed):
    model = nn.ParameterDict({"a": nn.Parameter(torch.randn(5, 6, dtype=dtype).T)})  # not contiguous
    mask = Mask({"a": torch.rand(6, 5) > 0.5})
    with keep_sparse(model, mask, packed=packed):
        model["a"].grad = torch.full_like(model["a"], float("inf"))
        optim.SGD(model.parameters(), lr=0.1).step()
        assert not alive(model, mask)


@pytest.mark.parametrize("packed", [False, True])
def test_a_model_that_is_cast_under_a_hold(packed):
    model = network()
    mask = mask_for(model)
    with keep_sparse(model, mask, packed=packed):
        model.to(torch.bfloat16)
        loss(model(torch.randn(4, 10, dtype=torch.bfloat16))).backward()
        optim.SGD(model.parameters(), lr=0.1).step()
        assert not alive(model, mask)
