"""2:4 tickets in torch's semi-structured tensors: refusals and proofs anywhere, the kernels themselves on a GPU."""

import copy

import pytest
import torch
from torch import nn

from hf_lottery import MaskMismatchError, magnitude, n_of_m, prunable, prune, score_weights
from hf_lottery.structured import semi_structured, to_semi_structured_

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs a GPU with 2:4 kernels"
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64, bias=False), nn.ReLU(), nn.Linear(64, 12))


def ticket(model: nn.Module, scope=None):
    return prune(score_weights(prunable(model, include=r"weight"), magnitude), 0.5, scope=scope or n_of_m(2, 4))


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    now = dict(model.named_parameters())
    return now.keys() == before.keys() and all(
        type(now[name]) is nn.Parameter and torch.equal(now[name], weight) for name, weight in before.items()
    )


@pytest.fixture
def anywhere(monkeypatch):
    """Packs on any device, by a stand-in for torch's function: the weight itself."""
    monkeypatch.setattr(semi_structured, "_check_hardware", lambda weights: None)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight.clone())


def tie(model):
    model[3] = model[2]


REFUSALS = {
    "another model": (lambda m: None, {}, nn.Linear(128, 256), MaskMismatchError, "must name a parameter"),
    "on the CPU": (lambda m: None, {"exclude": "4"}, None, ValueError, r"CUDA device .*received 0\.weight, 2"),
    "no multiple of 16": (lambda m: None, {}, None, ValueError, r"multiples of 16; received 4\.weight\."),
    "tied": (tie, {"include": "2"}, None, ValueError, r"must belong to one layer; received 2\.weight\."),
    "nothing left": (lambda m: None, {"exclude": "weight"}, None, ValueError, "none is left"),
    "no linear layer of that name": (lambda m: None, {"include": "conv"}, None, ValueError, "matches none"),
}


@pytest.mark.parametrize(("change", "options", "other", "error", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_packed_is_one_error_and_the_model_is_unchanged(change, options, other, error, message):
    model = network().half()
    change(model)
    mask = ticket(other if other is not None else model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(error, match=message):
        to_semi_structured_(model, mask, **options)
    assert unchanged(model, before)


def test_a_mask_that_is_not_2_of_4_along_the_input_axis_is_refused(anywhere):
    model = network().half()
    for scope in (n_of_m(4, 8), n_of_m(2, 4, axis=0)):
        with pytest.raises(ValueError, match=r"at most 2 of every 4 weights along the input axis; received 0\.weight,"):
            to_semi_structured_(model, ticket(model, scope), exclude="4")


def test_a_number_type_without_kernels_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    model = network()
    on_gpu = {"a": model[0].weight, "b": model[2].weight}
    monkeypatch.setattr(torch.Tensor, "device", property(lambda tensor: torch.device("cuda", 0)))
    with pytest.raises(ValueError, match="must be float16 or bfloat16; received a, b"):
        semi_structured._check_hardware(on_gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match="compute capability 8.0"):
        semi_structured._check_hardware(on_gpu)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pruned_weights_count_as_zero_and_every_layer_is_reported(anywhere, dtype):
    model = network().to(dtype)
    mask, reference = ticket(model), copy.deepcopy(model)
    mask.apply_(reference)
    report = to_semi_structured_(model, mask, exclude="4")
    assert [row.name for row in report] == ["0.weight", "2.weight"]
    assert all(0 < row.difference <= 2 * torch.finfo(dtype).eps for row in report)
    assert [row.dense_bytes for row in report] == [2 * 128 * 256, 2 * 256 * 64]
    assert torch.equal(model[0].weight, reference[0].weight) and not model[0].weight.requires_grad
    assert not torch.equal(model[4].weight, reference[4].weight) and model[4].weight.requires_grad


@pytest.mark.parametrize(
    ("packing", "error", "message"),
    [
        (lambda weight: weight.roll(1, 1), RuntimeError, r"must compute the same outputs .* for '0\.weight'"),
        (lambda weight: weight * torch.nan, RuntimeError, "difference of nan"),
        (lambda weight: weight[:, :8], ValueError, r"torch must run every semi-structured layer; received '0\.weight'"),
        (lambda weight: weight.view(3), ValueError, r"refused: .*Exclude this layer"),
    ],
    ids=["other outputs", "no numbers", "a kernel that fails", "a shape that torch refuses"],
)
def test_what_is_not_proven_replaces_nothing(anywhere, monkeypatch, packing, error, message):
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", packing)
    model = network().half()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(error, match=message):
        to_semi_structured_(model, ticket(model), exclude="4")
    assert unchanged(model, before)


@needs_gpu
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_kernels_of_a_gpu_compute_the_same(dtype, compiled):
    model = network().to("cuda", dtype).eval()
    mask = prune(score_weights(prunable(model, include=["0.weight", "2.weight"]), magnitude), 0.5, scope=n_of_m(2, 4))
    mask.apply_(model)
    inputs = torch.randn(8, 5, 128, device="cuda", dtype=dtype)
    with torch.no_grad():
        expected = model(inputs)
        report = to_semi_structured_(model, mask)
        got = (torch.compile(model) if compiled else model)(inputs)
    assert len(report) == 2 and all(row.bytes < 0.6 * row.dense_bytes for row in report)
    assert (got - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()
