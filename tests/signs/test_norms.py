"""Norm parameters: which they are, and a step at their interpolation that equals the autograd reference."""

import copy

import pytest
import torch
from small_norms import NORMS, network
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import ConvNextConfig, ConvNextModel, GPT2Config, GPT2LMHeadModel, OlmoConfig, OlmoModel

from hf_lottery import interpolated_norms, norm_parameters
from hf_lottery.signs.norms import norm_path


def moved(kind, seed=0):
    """A network whose norms are away from their initial values, these values, and a batch."""
    torch.manual_seed(seed)
    model = network(kind)
    initial = norm_parameters(model).snapshot()
    with torch.no_grad():
        for parameter in norm_parameters(model).values():
            parameter.add_(torch.randn_like(parameter))
    return model, initial, torch.randn(8, 6)


class Unread(torch.Tensor):
    """A tensor whose number cannot be read in Python."""

    def _read(self, *_):
        raise AssertionError("the number was read")

    __bool__ = __float__ = item = tolist = __index__ = _read


def reference(model, initial, alpha, x):
    """Loss and gradients by autograd through the interpolation itself."""
    model = copy.deepcopy(model)
    named = dict(model.named_parameters())
    mixed = {name: (1 - alpha) * named[name] + alpha * value for name, value in initial.items()}
    loss = functional_call(model, mixed, x).square().mean()
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in named.items()}


def difference(model, gradients):
    return max((p.grad - gradients[name]).abs().max().item() for name, p in model.named_parameters())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", NORMS)
def test_a_step_equals_the_autograd_reference(kind, alpha):
    model, initial, x = moved(kind)
    loss, gradients = reference(model, initial, alpha, x)
    before = norm_parameters(model).snapshot()
    with interpolated_norms(model, initial, alpha):
        mine = model(x).square().mean()
        mine.backward()
    assert abs(mine.item() - loss) <= 1e-6
    assert difference(model, gradients) <= 1e-6
    assert all(torch.equal(parameter, before[name]) for name, parameter in norm_parameters(model).items())
    if alpha == 0.3:  # the test can tell alpha from another
        assert difference(model, reference(model, initial, 0.31, x)[1]) > 1e-6


@pytest.mark.parametrize("kind", NORMS)
def test_an_alpha_on_the_device_is_read_when_the_step_runs(kind):
    """A CUDA graph is captured with one alpha and runs with others, so the number must never reach Python."""
    model, initial, x = moved(kind)
    for value in (0.3, 0.8):
        loss, gradients = reference(model, initial, value, x)
        before, alpha = norm_parameters(model).snapshot(), torch.full((), value).as_subclass(Unread)
        model.zero_grad()
        with interpolated_norms(model, initial, alpha):
            mine = model(x).square().mean()
            mine.backward()
        assert abs(mine.item() - loss) <= 1e-6 and difference(model, gradients) <= 1e-6
        assert all(torch.equal(parameter, before[name]) for name, parameter in norm_parameters(model).items())


@pytest.mark.parametrize("kind", ["LayerNorm", "GemmaRMSNorm"])
def test_micro_batches_each_with_an_alpha_of_its_own(kind):
    model, initial, x = moved(kind)
    expected = None
    for alpha, half in ((0.2, x[:4]), (0.9, x[4:])):
        _, gradients = reference(model, initial, alpha, half)
        expected = gradients if expected is None else {name: expected[name] + g for name, g in gradients.items()}
        with interpolated_norms(model, initial, alpha):
            model(half).square().mean().backward()
    assert expected is not None
    assert difference(model, expected) <= 1e-6


def test_gradient_checkpointing_recomputes_at_the_same_norms():
    model, initial, x = moved("LayerNorm")
    _, gradients = reference(model, initial, 0.4, x)
    with interpolated_norms(model, initial, 0.4):
        checkpoint(model, x, use_reentrant=False).square().mean().backward()
    assert difference(model, gradients) <= 1e-6


def test_a_compiled_network_is_compiled_once():
    model, initial, x = moved("LayerNorm")
    compiled_for = []

    def backend(graph, _):
        compiled_for.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    for alpha in (0.1, 0.5, 0.9):
        model.zero_grad()
        _, gradients = reference(model, initial, alpha, x)
        with interpolated_norms(compiled, initial, alpha):
            compiled(x).square().mean().backward()
        assert difference(model, gradients) <= 1e-6
    assert len(compiled_for) == 1


def test_autocast_and_a_scaler_change_nothing_about_it():
    model, initial, x = moved("LayerNorm")
    with interpolated_norms(model, initial, 0.5), torch.autocast("cpu", torch.bfloat16):
        (model(x).square().mean() * 1024).backward()
    _, gradients = reference(model, initial, 0.5, x)
    for name, parameter in model.named_parameters():
        assert (parameter.grad / 1024 - gradients[name]).abs().max() <= 0.05 * gradients[name].abs().max() + 1e-3


def test_a_frozen_norm_is_interpolated_without_a_gradient():
    model, initial, x = moved("LayerNorm")
    frozen = next(iter(norm_parameters(model).values())).requires_grad_(False)
    with interpolated_norms(model, initial, 0.5):
        model(x).square().mean().backward()
    assert frozen.grad is None


def test_norms_are_back_after_an_error():
    model, initial, _ = moved("LayerNorm")
    before = norm_parameters(model).snapshot()
    with pytest.raises(ZeroDivisionError), interpolated_norms(model, initial, 0.5):
        _ = 1 / 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in norm_parameters(model).items())
    model(torch.randn(2, 6)).sum().backward()
    assert next(iter(norm_parameters(model).values())).grad.abs().max() > 0


def test_an_optimizer_step_inside_is_noticed():
    model, initial, x = moved("LayerNorm")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    interpolation = interpolated_norms(model, initial, 0.5)
    with (
        pytest.raises(RuntimeError, match=r"must not be written while they are interpolated; '1.weight' was"),
        interpolation,
    ):
        model(x).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range(alpha):
    model, initial, _ = moved("LayerNorm")
    with (
        pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]; received"),
        interpolated_norms(model, initial, alpha),
    ):
        pass


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ({"nothing": torch.ones(6)}, "initial must name parameters of the model; received 'nothing'"),
        ({"1.weight": torch.ones(2)}, r"initial value of '1.weight' must have shape \[7\]; received \[2\]"),
    ],
)
def test_initial_values_of_another_model(initial, message):
    model = network("LayerNorm")
    with pytest.raises(ValueError, match=message), interpolated_norms(model, initial, 0.5):
        pass


def test_the_norm_path_runs_from_psi_to_its_initial_value():
    model = network("LayerNorm")
    initial = norm_parameters(model).snapshot()
    with torch.no_grad():
        model[1].weight.fill_(3.0)
    path = norm_path(model, initial, lambda network: network[1].weight[0].item(), points=3)
    assert path == [(0.0, 3.0), (0.5, 2.0), (1.0, 1.0)]
    assert model[1].weight[0] == 3
    with pytest.raises(ValueError, match="points must be at least 2, the two ends; received 1"):
        norm_path(model, initial, lambda _: 0.0, points=1)


@pytest.mark.parametrize("kind", NORMS)
def test_every_norm_is_found_and_nothing_else(kind):
    found = norm_parameters(network(kind))
    assert list(found) == (
        ["1.weight"] if kind in ("LayerNorm without bias", "RMSNorm", "GemmaRMSNorm") else ["1.weight", "1.bias"]
    )
    assert not found.left_out


def test_norms_of_transformers():
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, bos_token_id=0, eos_token_id=0))
    assert set(norm_parameters(gpt)) == {
        f"transformer.{norm}.{part}" for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f") for part in ("weight", "bias")
    }
    olmo = OlmoModel(
        OlmoConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            vocab_size=9,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    assert not norm_parameters(olmo)  # its norms have no parameters


def test_scales_that_are_no_norms_are_named():
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4], depths=[1, 1], num_stages=2))
    found = norm_parameters(model)
    assert found.left_out == tuple(f"encoder.stages.{i}.layers.0.layer_scale_parameter" for i in (0, 1))
    assert "scale-like, left out: encoder.stages.0.layers.0.layer_scale_parameter" in repr(found)
    assert not any("layer_scale" in name for name in found)


def test_patterns_override():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.LayerNorm(3))
    assert list(norm_parameters(model, exclude="^1")) == ["2.weight", "2.bias"]
    assert list(norm_parameters(model, include=["^0.bias", "^2"])) == ["0.bias", "2.weight", "2.bias"]
    assert list(norm_parameters(model, include="weight", exclude="^0")) == ["1.weight", "2.weight"]
    assert norm_parameters(torch.nn.DataParallel(model)).keys() == norm_parameters(model).keys()


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"include": "norm"}, "include must match the name of a parameter; received 'norm', which matches none"),
        ({"exclude": ""}, "exclude must be a regular expression; received an empty one"),
        ({"exclude": "("}, r"exclude must be a valid regular expression; received '\('"),
    ],
)
def test_patterns_that_match_nothing(patterns, message):
    with pytest.raises(ValueError, match=message):
        norm_parameters(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), **patterns)


def test_only_a_module_has_norms():
    with pytest.raises(TypeError, match="must be a torch.nn.Module; received dict"):
        norm_parameters({})  # pyright: ignore[reportArgumentType]


def test_a_parameter_of_two_norms_is_taken_once():
    model = nn.Sequential(nn.LayerNorm(3), nn.LayerNorm(3))
    model[1].weight = model[0].weight
    assert list(norm_parameters(model)) == ["0.weight", "0.bias", "1.bias"]


def test_a_shared_norm_is_interpolated_once_also_by_two_names():
    model = nn.Sequential(nn.LayerNorm(3), nn.LayerNorm(3))
    model[1].weight = model[0].weight
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.fill_(3.0)
    with interpolated_norms(model, initial, 0.5):
        assert model[0].weight.tolist() == [2.0] * 3
        model(torch.randn(4, 3)).sum().backward()
    assert model[0].weight.tolist() == [3.0] * 3


def test_the_parameters_themselves_are_no_initial_values():
    model = nn.LayerNorm(3)
    message = "initial value of 'weight' must be a copy"
    with pytest.raises(ValueError, match=message), interpolated_norms(model, norm_parameters(model), 0.5):
        pass


def test_a_failure_on_the_way_in_leaves_the_norms():
    model = nn.LayerNorm(3)
    model.register_buffer("count", torch.zeros(3, dtype=torch.long))
    named = {**dict(model.named_parameters()), "count": model.count}
    with torch.no_grad():
        model.weight.fill_(3.0)
    with pytest.raises(RuntimeError), interpolated_norms(named, {n: torch.ones(3) for n in named}, 0.5):
        pass
    assert model.weight.tolist() == [3.0] * 3


def test_layers_that_are_called_norms_are_none():
    class NormLinear(nn.Linear):
        pass

    class NormBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.LayerNorm(3), nn.Parameter(torch.ones(3))

    class Plain(nn.RMSNorm):
        pass

    Plain.__name__ = "Plain"
    model = nn.Sequential(NormLinear(3, 3), NormBlock(), Plain(3))
    found = norm_parameters(model)
    assert list(found) == ["1.inner.weight", "1.inner.bias", "2.weight"]
    assert found.left_out == ("1.scale",)


def test_half_precision_takes_initial_values_of_another():
    model = nn.LayerNorm(3, dtype=torch.bfloat16)
    with interpolated_norms(model, {"weight": torch.full((3,), 3.0)}, 0.5):
        assert model.weight.tolist() == [2.0] * 3


def test_points_of_the_path_are_exact():
    model = nn.LayerNorm(2)
    alphas = [alpha for alpha, _ in norm_path(model, norm_parameters(model).snapshot(), lambda _: 0.0, points=11)]
    assert alphas == [i / 10 for i in range(11)]
