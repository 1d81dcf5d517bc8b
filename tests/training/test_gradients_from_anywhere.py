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


MIX = {**{name: MAKE[name] for name in ("adafactor", "muon")}, "lbfgs": lambda p: optim.LBFGS(p, lr=0.5, max_iter=4)}


@pytest.mark.parametrize("way", ["closure", "hook"])
@pytest.mark.parametrize("name", MIX)
def test_no_gradient_of_a_pruned_weight_reaches_it_from_inside_a_step(name, way):
    """A closure that the step calls and a hook that runs before it write gradients later than our hook looks."""
    results, alive_inside = [], 0
    for noise in (False, True):
        model = network()
        mask, optimizer = mask_for(model), MIX[name](list(model.parameters()))

        def write_gradients(*_, model=model, mask=mask, noise=noise):
            nonlocal alive_inside
            alive_inside += alive(model, mask)
            torch.manual_seed(2)
            for parameter_name, parameter in model.named_parameters():
                parameter.grad = torch.randn_like(parameter)
                if noise and parameter_name in mask:
                    parameter.grad[~mask[parameter_name]] += 3
            return torch.tensor(1.0)

        closure = write_gradients
        if way == "hook":
            optimizer.register_step_pre_hook(lambda *_, write=write_gradients: write() and None)
            closure = lambda: torch.tensor(1.0)  # noqa: E731
        with keep_sparse(model, mask):
            for _ in range(2):
                optimizer.step(closure)
        results.append(model[0].weight)
    assert torch.equal(*results)
    assert not alive_inside


def test_lbfgs_must_begin_under_the_mask():
    model = network()
    mask, optimizer = mask_for(model), optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        value = loss(model(torch.ones(4, 10)))
        value.backward()
        return value

    optimizer.step(closure)
    with pytest.raises(NotImplementedError, match="LBFGS must begin under the mask.*new optimizer"):
        keep_sparse(model, mask, optimizer)
    with keep_sparse(model, mask), pytest.raises(NotImplementedError, match="LBFGS"):
        optimizer.step(closure)
    with keep_sparse(model, mask):
        optim.LBFGS(model.parameters(), max_iter=2).step(closure)


def masked_network(mask: Mask, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function of a network whose forward uses ``weight * mask``."""

    def function(x: Tensor) -> Tensor:
        weights = {n: p * mask[n] if n in mask else p for n, p in model.named_parameters()}
        return functional_call(model, weights, (x,))

    return function


def with_a_penalty(function, model: nn.Module) -> None:
    """A penalty on gradients: a pruned one would give gradients to kept weights."""
    loss(function(torch.ones(4, 10))).backward(create_graph=True)
    gradients = [parameter.grad for parameter in model.parameters()]
    torch.stack([gradient.sum() for gradient in gradients]).sum().backward()


def with_a_probe(function, model: nn.Module) -> None:
    """The product of the Hessian with a vector, as second-order optimizers estimate it."""
    loss(function(torch.ones(4, 10))).backward(create_graph=True)
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    products = torch.autograd.grad(gradients, parameters, [torch.ones_like(p) for p in parameters])
    for parameter, product in zip(parameters, products, strict=True):
        parameter.grad = product


def with_weights_thawed(function, model: nn.Module) -> None:
    """Weights that were frozen when the hold began, and a norm that is clipped before their first step."""
    model.requires_grad_(True)
    loss(function(torch.ones(4, 10))).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("way", [with_a_penalty, with_a_probe, with_weights_thawed])
def test_training_is_that_of_a_network_that_uses_weight_times_mask(way, packed):
    ours, theirs = network(), network()
    mask = mask_for(ours)
    mask.apply_(theirs)
    ours[0].weight.requires_grad_(way is not with_weights_thawed)
    with keep_sparse(ours, mask, packed=packed):
        for model, function in ((ours, ours), (theirs, masked_network(mask, theirs))):
            way(function, model)
            optim.SGD(model.parameters(), lr=0.1).step()
            for parameter in model.parameters():
                parameter.grad = None  # torch warns of a cycle otherwise
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(name)
        torch.testing.assert_close(parameter, expected * mask[name] if name in mask else expected, rtol=0, atol=0)


def test_a_frozen_weight_stays_frozen():
    model = network()
    model[0].weight.requires_grad_(False)
    with keep_sparse(model, mask_for(model)):
        assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]


def test_two_names_of_a_tied_weight_hold_together():
    model = nn.ModuleDict({"a": nn.Linear(6, 6, bias=False), "b": nn.Linear(6, 6, bias=False)})
    model["b"].weight = model["a"].weight
    mask = Mask({"a.weight": torch.rand(6, 6) > 0.5, "b.weight": torch.rand(6, 6) > 0.5})
    with keep_sparse(model, mask):
        model["a"].weight.grad = torch.ones(6, 6)
        optim.SGD(model.parameters(), lr=0.1).step()
        assert torch.equal(model["a"].weight != 0, mask["a.weight"] & mask["b.weight"])


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
