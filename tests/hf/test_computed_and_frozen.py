"""Weights that are computed from other parameters, and frozen ones: what `prunable` and `Mask` make of them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import BertConfig, BertForSequenceClassification

from hf_lottery import prunable

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
