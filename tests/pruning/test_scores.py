import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_lottery import gather_evidence, magnitude, movement, random_score, saliency, score_weights, wanda
from hf_lottery.pruning.evidence import Evidence
from hf_lottery.pruning.scores import check_score


def squared_error(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def test_scores_by_hand():
    w = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    evidence = Evidence(
        gradient=torch.tensor([[-3.0, 1.0], [2.0, 9.0]]),
        input_norm=torch.tensor([[10.0, 1.0]]),
        start=torch.tensor([[2.0, 0.0], [0.5, 1.0]]),
    )
    assert magnitude(w, evidence).tolist() == [[1.0, 2.0], [0.5, 0.0]]
    assert saliency(w, evidence).tolist() == [[3.0, 2.0], [1.0, 0.0]]
    assert movement(w, evidence).tolist() == [[-1.5, 2.0], [0.0, -0.5]]
    assert wanda(w, evidence).tolist() == [[10.0, 2.0], [5.0, 0.0]]
    for score in (magnitude, saliency, movement, wanda):
        assert not score(nn.Parameter(w), evidence).requires_grad


def test_random_repeats_with_the_seed():
    torch.manual_seed(5)
    first = random_score(torch.zeros(100))
    torch.manual_seed(5)
    assert torch.equal(first, random_score(torch.zeros(100))) and not torch.equal(first, random_score(torch.zeros(100)))
    assert first.unique().numel() > 90 and first.min() >= 0 and first.max() < 1


def test_movement_is_the_limit_of_the_accumulated_sum():
    weight, start, total, rate = torch.tensor([1.0, -0.5]), torch.tensor([1.0, -0.5]), torch.zeros(2), 1e-4
    for _ in range(2000):
        gradient = weight - torch.tensor([2.0, 0.0])
        total -= rate * gradient * weight
        weight = weight - rate * gradient
    assert movement(weight, Evidence(start=start)) == pytest.approx(total, rel=1e-3)


def test_score_weights_takes_any_callable_and_names_the_culprit():
    model = nn.Linear(2, 1)
    assert score_weights(model, lambda w, e: -w)["weight"].tolist() == (-model.weight).tolist()
    evidence = {"weight": Evidence(start=model.weight + 1)}
    assert torch.equal(
        score_weights({"weight": model.weight}, lambda w, e: e.start, evidence=evidence)["weight"], model.weight + 1
    )
    with pytest.raises(ValueError, match=r"'weight': saliency must be given evidence with a gradient; received none"):
        score_weights(model, saliency)
    with pytest.raises(ValueError, match=r"score of 'weight' must have the weight's shape \[1, 2\]; received \[\]"):
        score_weights({"weight": model.weight}, lambda w, e: w.sum())


def test_gradients_are_those_of_autograd():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    batches = [(torch.randn(5, 3), torch.randn(5, 2)) for _ in range(3)]
    within = {"0.weight": model[0].weight}
    found = gather_evidence(model, batches, squared_error, within=within)
    model.eval()
    total = sum(torch.autograd.grad(squared_error(model, batch), model[0].weight)[0] for batch in batches)
    assert torch.allclose(found["0.weight"].gradient, total, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_gathering_leaves_the_model_as_it_was(training):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train(training)
    model[0].weight.grad = torch.ones(4, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gather_evidence(model, [(torch.randn(5, 3), torch.randn(5, 2))], squared_error, within={"w": model[0].weight})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model[0].weight.grad.eq(1).all() and model[2].weight.grad is None
    assert model.training is training and not model[0]._forward_pre_hooks


def input_norm(layer, x):
    return gather_evidence(layer, [x, x], lambda m, b: m(b).sum(), within={"w": layer.weight})["w"].input_norm


def test_input_norms_of_linear_layers():
    x = torch.randn(4, 5, 3)
    expected = (2 * x.square().sum((0, 1))).sqrt()
    assert torch.allclose(input_norm(nn.Linear(3, 2), x), expected[None, :])
    assert torch.allclose(input_norm(Conv1D(2, 3), x), expected[:, None])


@pytest.mark.parametrize("groups", [1, 2])
def test_input_norms_of_convolutions_broadcast_to_each_filter(groups):
    layer, x = nn.Conv2d(4, 6, 3, groups=groups), torch.randn(2, 4, 7, 7)
    norm = (2 * x.square().sum((0, 2, 3))).sqrt()
    found = input_norm(layer, x).expand(6, 4 // groups, 3, 3)
    for filter_ in range(6):
        first = filter_ // (6 // groups) * (4 // groups)
        assert torch.allclose(found[filter_, :, 0, 0], norm[first : first + 4 // groups])


def test_input_norms_without_a_batch_and_in_half_precision():
    x = torch.randn(4, 9)
    expected = (2 * x.square().sum(1)).sqrt()[None, :, None].expand(6, 4, 1)
    assert torch.allclose(input_norm(nn.Conv1d(4, 6, 3), x), expected)
    many = torch.ones(1000, 3, dtype=torch.bfloat16)  # a sum in bfloat16 stops growing at 256
    assert input_norm(nn.Linear(3, 2, dtype=torch.bfloat16), many).tolist() == [[pytest.approx(2000**0.5)] * 3]


def test_layers_without_input_norms():
    assert input_norm(nn.LayerNorm(3), torch.randn(4, 3)) is None
    layer = nn.Linear(3, 2)
    found = gather_evidence(layer, [torch.ones(1, 3)], lambda m, b: m(input=b).sum(), within={"w": layer.weight})
    assert found["w"].input_norm is None and found["w"].gradient is not None


def test_evidence_that_cannot_be_had():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="batches must hold at least one batch; received none"):
        gather_evidence(model, [], squared_error, within={"w": model.weight})
    other = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="'other' must get a gradient from the batches; received none"):
        gather_evidence(model, [(torch.ones(1, 3), torch.ones(1, 2))], squared_error, within={"other": other.weight})


def test_modes_are_kept_module_by_module():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    model[1].eval()
    gather_evidence(model, [(torch.randn(5, 3), torch.randn(5, 2))], squared_error, within={"w": model[0].weight})
    assert [module.training for module in model] == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_are_computed_in_float32(dtype):
    weight = torch.tensor([1.0, 1.0078125, 3e-4]).to(dtype)
    evidence = {"w": Evidence(gradient=torch.tensor([1.0078125, 1.015625, 3e-4]).to(dtype), start=weight * 0.5)}
    for score in (saliency, movement, lambda weight, evidence: weight * evidence.start):
        expected = score(weight.float(), Evidence(*(x if x is None else x.float() for x in evidence["w"])))
        found = score_weights({"w": weight}, score, evidence=evidence)["w"]
        assert found.dtype == torch.float32 and torch.equal(found, expected)
    seen = []
    check_score(lambda weight, evidence: seen.append((weight.dtype, evidence.start.dtype)) or weight, {"w": weight})
    assert seen == [(torch.float32, torch.float32)]


def test_gradients_of_half_precision_are_summed_in_float32():
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    batches = [torch.ones(1, 1, dtype=torch.bfloat16)] * 300  # a sum in bfloat16 stops growing at 256
    found = gather_evidence(model, batches, lambda m, x: m(x).sum(), within={"w": model.weight})
    assert found["w"].gradient.dtype == torch.float32 and found["w"].gradient.item() == 300
    assert model.weight.grad is None


def test_weights_whose_inputs_cannot_be_seen_are_explained():
    model = nn.MultiheadAttention(4, 2)
    within = {"in_proj_weight": model.in_proj_weight, "out_proj.weight": model.out_proj.weight}
    x = torch.randn(3, 4)
    found = gather_evidence(model, [x], lambda m, x: m(x, x, x)[0].sum(), within=within)
    with pytest.raises(ValueError, match="received none.*nn.MultiheadAttention"):
        score_weights(within, wanda, evidence=found)
