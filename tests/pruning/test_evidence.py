"""Evidence of chosen fields only."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_lottery import gather_evidence, prunable
from hf_lottery.pruning import evidence
from hf_lottery.pruning.evidence import without_inputs

BATCHES = [torch.ones(4, 3), torch.full((2, 3), 2.0)]


def gather(model, fields, losses):
    def loss(model, batch):
        losses.append(model(batch).sum())
        return losses[-1]

    return gather_evidence(model, BATCHES, loss, within={"weight": model.weight}, fields=fields)["weight"]


@pytest.mark.parametrize("fields", [(), ("input_norm",), ("start", "input_norm"), ["gradient"], {"gradient", "start"}])
def test_only_what_is_asked_for_is_gathered(fields):
    losses = []
    found = gather(nn.Linear(3, 2), fields, losses)
    assert (found.gradient is not None, found.input_norm is not None) == ("gradient" in fields, "input_norm" in fields)
    assert found.start is None and len(losses) == 2
    assert all(loss.requires_grad is ("gradient" in fields) for loss in losses)


def test_frozen_weights_have_input_norms():
    model = nn.Linear(3, 2).requires_grad_(False)
    found = gather(model, ("input_norm",), [])
    assert found.input_norm.tolist() == [[pytest.approx(12**0.5)] * 3]
    assert model.weight.grad is None
    with pytest.raises(ValueError, match=r"depend on a weight that is not frozen.*fields=\['input_norm'\]"):
        gather(model, ("gradient",), [])
    half = nn.Sequential(nn.Linear(3, 2).requires_grad_(False), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'0' must get a gradient.*frozen.*fields=\['input_norm'\]"):
        gather_evidence(half, BATCHES, lambda m, b: m(b).sum(), within={"0": half[0].weight})


@pytest.mark.parametrize("enabled", [True, False])
def test_whether_gradients_are_tracked_is_restored(enabled):
    with torch.set_grad_enabled(enabled):
        for fields in ((), ("gradient",)):
            gather(nn.Linear(3, 2), fields, [])
            assert torch.is_grad_enabled() is enabled


def test_gradients_that_were_there_stay_without_a_backward():
    model = nn.Linear(3, 2)
    before = model.weight.grad = torch.ones(2, 3)
    gather(model, ("input_norm",), [])
    assert model.weight.grad is before and before.eq(1).all()


def test_no_batches_are_refused_whatever_is_gathered():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="at least one batch; received none"):
        gather_evidence(model, [], lambda *_: 1 / 0, within={"weight": model.weight}, fields=())


@pytest.mark.parametrize(
    ("loss", "received"), [(lambda m, b: m(b), "shape [4, 2]"), (lambda m, b: m(b).sum().item(), "float")]
)
def test_a_loss_is_one_number(loss, received):
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="must return a tensor of one number; received") as error:
        gather_evidence(model, BATCHES, loss, within={"weight": model.weight})
    assert f"received {received}." in str(error.value)


def test_a_batch_that_a_layer_does_not_take_is_refused_by_the_layer():
    model = nn.Linear(3, 2)
    with pytest.raises(TypeError, match="linear"):
        gather_evidence(model, [(torch.ones(4, 3), 1)], lambda m, b: m(b).sum(), within={"weight": model.weight})


class Kinds(nn.Module):
    """Layers of every kind: some are called with the input of their weight, and some are not."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, kdim=8, vdim=4, batch_first=True)
        self.conv, self.turned = nn.Conv1d(8, 8, 1), nn.ConvTranspose1d(8, 8, 1)
        self.linear, self.experts = nn.Linear(8, 8), nn.Parameter(torch.randn(2, 8, 8))
        self.normed = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))

    def forward(self, ids):
        x = self.norm(self.table(ids))
        x = self.attention(x, x, x[..., :4])[0].mT
        return self.normed(self.linear(self.turned(self.conv(x)).mT)) @ self.experts.sum(0)


def test_weights_without_inputs_are_those_for_which_no_norm_is_gathered():
    model = Kinds()
    matrices = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1}
    unseen = without_inputs(model, matrices)
    ids, loss = torch.randint(9, (3, 5)), lambda m, b: m(b).square().mean()
    found = gather_evidence(model, [ids], loss, within=matrices, fields=["input_norm"])
    assert unseen == [name for name in matrices if found[name].input_norm is None]
    assert not {"conv.weight", "linear.weight"} & set(unseen) and len(unseen) == len(matrices) - 2


def test_inputs_inside_a_layer_of_torch_are_those_of_its_feed_forward_part():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    weights = prunable(model)
    found = gather_evidence(
        model, [torch.randn(2, 5, 8)], lambda m, b: m(b).sum(), within=weights, fields=["input_norm"]
    )
    assert without_inputs(model, weights) == [name for name in weights if found[name].input_norm is None]
    assert len(without_inputs(model, weights)) == 4


def test_looking_for_inputs_takes_no_step_of_a_spectral_norm():
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    without_inputs(model, dict(model.named_parameters()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Shared(nn.Module):
    """Three layers read one input; it is written to before the last one reads it."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 2) for _ in range(3))

    def forward(self, x):
        found = self.q(x) + self.k(x)
        return (found + self.v(x.mul_(2))).sum()


def test_what_several_layers_read_is_summed_once_and_again_if_it_was_written_to(monkeypatch):
    calls, squares = [], evidence._sum_of_squares
    monkeypatch.setattr(evidence, "_sum_of_squares", lambda *args: calls.append(args) or squares(*args))
    model = Shared()
    batches = [batch.clone() for batch in BATCHES]
    found = gather_evidence(model, batches, lambda m, b: m(b), within=prunable(model), fields=["input_norm"])
    assert len(calls) == 2 * len(BATCHES)
    norm = 12**0.5
    expected = {"q.weight": norm, "k.weight": norm, "v.weight": 2 * norm}
    assert {name: one.input_norm[0, 0].item() for name, one in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
def test_norms_of_images_do_not_depend_on_their_layout(layout, dtype, groups):
    images = torch.randn(5, 4, 7, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    model = nn.Conv2d(4, 6, 3, groups=groups, dtype=dtype)
    batches = [images.contiguous(memory_format=layout), images[0]]  # the last one without a batch axis
    found = gather_evidence(
        model, batches, lambda m, b: m(b).sum(), within={"weight": model.weight}, fields=["input_norm"]
    )["weight"].input_norm
    both = torch.cat([images, images[:1]]).float()
    per_channel = both.square().sum((0, 2, 3)).sqrt().view(groups, -1)
    expected = per_channel.repeat_interleave(6 // groups, 0)[:, :, None, None]
    torch.testing.assert_close(found, expected)


def test_inputs_in_inference_mode_have_norms():
    model = nn.Linear(3, 2)
    with torch.inference_mode():
        batches = [torch.ones(4, 3)]
        found = gather_evidence(
            model, batches, lambda m, b: m(b).sum(), within={"w": model.weight}, fields=["input_norm"]
        )
    assert found["w"].input_norm.tolist() == [[2.0] * 3]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_that_runs_again_for_its_gradient_is_read_once(reentrant):
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return self[1](checkpoint(self[0], x, use_reentrant=reentrant))

    model = Checkpointed(nn.Linear(3, 3), nn.Linear(3, 2))
    batches = [batch.clone().requires_grad_() for batch in BATCHES]
    found = gather_evidence(model, batches, lambda m, b: m(b).sum(), within=prunable(model))
    assert found["0.weight"].input_norm.tolist() == [[pytest.approx(12**0.5)] * 3]


def test_a_loader_may_put_every_batch_into_the_same_memory():
    numbers = np.zeros((4, 3), np.float32)
    batch, model = torch.from_numpy(numbers), nn.Linear(3, 2)

    def batches():
        for value in (1, 2):
            numbers[:] = value  # which torch does not notice
            yield batch

    found = gather_evidence(
        model, batches(), lambda m, b: m(b).sum(), within={"w": model.weight}, fields=["input_norm"]
    )
    assert found["w"].input_norm.tolist() == [[pytest.approx(20**0.5)] * 3]
