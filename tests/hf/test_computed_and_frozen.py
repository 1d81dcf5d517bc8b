"""Weights that are computed from other parameters, and frozen ones: what `prunable` and `Mask` make of them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import BertConfig, BertForSequenceClassification, Wav2Vec2Config, Wav2Vec2ForCTC

from hf_lottery import Mask, MaskMismatchError, Snapshot, keep_sparse, prunable, score_weights
from hf_lottery import prune as cut

SIZES = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
REPARAMETRIZED = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "old weight norm": nn.utils.weight_norm,
    "weight norm": nn.utils.parametrizations.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("change", REPARAMETRIZED.values(), ids=REPARAMETRIZED)
def test_a_computed_weight_is_left_out_and_named_in_one_warning(change):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    change(model[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"computed from other parameters; left out: 0\.weight\.") as warned:
        found = prunable(model)
    assert len(warned) == 1 and list(found) == ["1.weight"] and list(found.computed) == ["0.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert prunable(model, exclude=r"0\.weight").computed == {}  # without a warning


def test_frozen_weights_are_covered_and_named_in_one_warning():
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **SIZES))
    everything = list(prunable(model))
    model.bert.pooler.requires_grad_(False)
    model.classifier.requires_grad_(False)  # the head is not covered
    with pytest.warns(UserWarning, match=r"1 frozen parameters are covered: bert\.pooler\.dense\.weight") as warned:
        assert list(prunable(model)) == everything
    assert len(warned) == 1
    assert "bert.pooler.dense.weight" not in prunable(model, exclude="pooler")


def pruned(model):
    prune.l1_unstructured(model[0], "weight", 0.5)


def loaded(model):
    """The state of a pruned model, loaded into one that computes its weight but has pruned nothing yet."""
    state = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    pruned(state)
    prune.identity(model[0], "weight")
    model.load_state_dict(state.state_dict())


def zero_direction(model):
    nn.utils.parametrizations.weight_norm(model[0])
    with torch.no_grad():
        model[0].parametrizations.weight.original1[0, 0] = 0


def zero_gain(model):
    nn.utils.weight_norm(model[0])
    nn.init.zeros_(model[0].weight_g)


def masked(model):
    """A parametrization whose original has no zeros."""
    nn.utils.parametrize.register_parametrization(model[0], "weight", Triangle())


class Triangle(nn.Module):
    def forward(self, weight):
        return weight.tril()


def adopted(call):
    """The message that a call is refused with."""
    with pytest.raises(ValueError, match="zeros must be adopted from plain parameters") as error:
        call()
    assert "torch.nn.utils.prune.remove" in str(error.value)
    return str(error.value)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:a mask covers no weight that is computed")
@pytest.mark.parametrize("change", [pruned, loaded, zero_direction, zero_gain, masked])
def test_zeros_that_are_computed_are_refused(change):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    change(model)
    assert "received 0.weight, of weights" in adopted(lambda: Mask.from_model(model))
    assert "received 0.weight, of weights" in adopted(lambda: Mask.from_model(prunable(model)))
    assert Mask.from_model(prunable(model, exclude=r"^0")).keys() == {"1.weight"}
    assert "received 0." in adopted(lambda: Mask.from_model(dict(model.named_parameters())))
    with pytest.raises(MaskMismatchError, match=r"received no such name\. This weight is computed .* To cover it"):
        Mask({"0.weight": torch.ones(4, 4, dtype=torch.bool)}).apply_(model)


def test_zeros_that_were_made_permanent_are_adopted():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    pruned(model)
    prune.remove(model[0], "weight")
    assert Mask.from_model(prunable(model)) == Mask.from_model(model)
    assert Mask.from_model(model).layer_sparsities() == {"0.weight": 0.5, "1.weight": 0.0}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("change", list(REPARAMETRIZED)[1:])
def test_a_model_with_a_norm_of_its_weights_works(change):
    """It computes no zeros, so the rest of it can be adopted, held and trained."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    REPARAMETRIZED[change](model[0])
    model(torch.ones(1, 4))
    with torch.no_grad():
        model[1].weight[0] = 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"left out: 0\.weight") as warned:
        mask = Mask.from_model(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # no power iteration
    assert len(warned) == 1 and mask.layer_sparsities() == {"1.weight": 0.25}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with keep_sparse(model, mask, optimizer):
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    snapshot = Snapshot.capture(model)
    snapshot.restore_(model)
    assert mask.kept == int((model[1].weight != 0).sum())


def test_wav2vec_with_a_weight_norm_can_be_sparse():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    convolutions = {"conv_dim": (4,), "conv_stride": (2,), "conv_kernel": (3,), "num_conv_pos_embedding_groups": 2}
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**sizes, **convolutions, vocab_size=20))
    with pytest.warns(UserWarning, match=r"left out: wav2vec2\.encoder\.pos_conv_embed\.conv\.weight\."):
        weights = prunable(model)
    mask = cut(score_weights(weights), 0.5)
    mask.apply_(model)
    with pytest.warns(UserWarning, match="pos_conv_embed"):
        assert Mask.from_model(prunable(model)) == mask


def test_a_pruned_bias_and_a_pruned_embedding():
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    prune.l1_unstructured(model[1], "bias", 0.5)  # not covered anyway
    assert Mask.from_model(prunable(model)).keys() == {"1.weight"}
    prune.l1_unstructured(model[0], "weight", 0.5)
    assert Mask.from_model(prunable(model)).keys() == {"1.weight"}
    assert "received 0.weight" in adopted(lambda: Mask.from_model(model))


def test_a_layer_without_a_weight_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[1].weight)
    with pytest.warns(UserWarning, match=r"no weight is left in '1\.weight': .* prunable\(model, exclude=") as warned:
        assert Mask.from_model(prunable(model)).layer_sparsities()["1.weight"] == 1
    assert len(warned) == 1
    Mask.from_model(prunable(model, exclude="1"))  # without a warning
