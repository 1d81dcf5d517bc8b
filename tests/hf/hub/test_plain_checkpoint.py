"""Checkpoints whose config.json does not tell weights from buffers, wrapped names, and tied heads."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from hf_lottery import Mask, MaskMismatchError, prunable
from hf_lottery.hf.hub.checkpoint import mask_from_checkpoint


def bert():
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(num_hidden_layers=1, **sizes))


def gpt2():
    words = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_positions=8, n_layer=1, n_head=2, **words))


def two_layers():
    return nn.Sequential(nn.Linear(6, 5), nn.Conv2d(1, 2, 3))


def sparse(model):
    mask = Mask({name: torch.rand(p.shape) > 0.5 for name, p in prunable(model).items()})
    mask.apply_(model)
    return mask


def sinusoids(length, width):
    angle = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


BUFFERS = {
    "h.0.attn.bias": torch.ones(8, 8).tril().view(1, 1, 8, 8),
    "layers.0.attn_mask": torch.ones(6, 6).triu() * -1e4,
    "rotary.cos": torch.eye(4),
    "pe": sinusoids(8, 16),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_a_buffer_full_of_zeros_is_no_pruned_weight(name, tmp_path):
    save_file({"fc.weight": torch.randn(4, 3), name: BUFFERS[name]}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"include must tell .* with zeros are '{name}' \(.*the checkpoint is dense"):
        mask_from_checkpoint(tmp_path)
    for told in ({"include": "fc"}, {"model": {"fc.weight": torch.empty(4, 3)}}):
        with pytest.raises(ValueError, match="must hold pruned weights; .* It is dense"):
            mask_from_checkpoint(tmp_path, **told)


def test_a_known_class_tells_its_buffers(tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    buffers = {
        "transformer.h.0.attn.bias": BUFFERS["h.0.attn.bias"],
        "transformer.h.0.attn.masked_bias": -torch.ones(1),
    }
    save_file(stored | buffers, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="must hold pruned weights; .* It is dense"):
        mask_from_checkpoint(tmp_path)
    mask = sparse(model)
    save_file(dict(model.transformer.state_dict()) | buffers, tmp_path / "model.safetensors", {"format": "pt"})
    assert mask_from_checkpoint(tmp_path) == mask


@pytest.mark.parametrize("told", ["model", "include"])
def test_a_plain_module_saved_by_hand(told, tmp_path):
    model = two_layers()
    mask = sparse(model)
    save_file(model.state_dict() | {"mask": torch.eye(3)}, tmp_path / "anything.safetensors")
    found = mask_from_checkpoint(tmp_path, **({"model": two_layers()} if told == "model" else {"include": "weight"}))
    assert found == mask
    part = mask_from_checkpoint(tmp_path, include="^0", model=two_layers() if told == "model" else None)
    assert math.isclose(part.sparsity, mask.layer_sparsities()["0.weight"])


def test_a_row_of_zeros_and_more_may_be_pruned(tmp_path):
    weight = torch.ones(4, 3)
    weight[1] = 0  # alone, this would be the padding row of an embedding
    save_file({"a.weight": weight, "b.bias": torch.zeros(3), "c": torch.zeros(())}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="It is dense"):
        mask_from_checkpoint(tmp_path)
    weight[2, 0] = 0
    save_file({"a.weight": weight}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="with zeros are 'a.weight' .33%."):
        mask_from_checkpoint(tmp_path)
    assert mask_from_checkpoint(tmp_path, include="a") == Mask({"a.weight": weight != 0})


def test_another_model_is_noticed(tmp_path):
    save_file(two_layers().state_dict(), tmp_path / "x.safetensors")
    for model in (nn.Sequential(nn.Linear(5, 6)), nn.ModuleDict({"fc": nn.Linear(6, 5)})):
        with pytest.raises(MaskMismatchError, match="must hold the weight .* Pass the model that was saved"):
            mask_from_checkpoint(tmp_path, model=model)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module._orig_mod.module."]
)
@pytest.mark.parametrize("with_config", [True, False])
def test_prefixes_of_wrappers_come_off(prefix, with_config, tmp_path):
    model = bert()
    mask = sparse(model)
    model.save_pretrained(tmp_path)
    stored = {f"{prefix}{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(stored | {"n_averaged": torch.tensor(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    if with_config:
        assert mask_from_checkpoint(tmp_path) == mask
    else:
        (tmp_path / "config.json").unlink()
        assert mask_from_checkpoint(tmp_path, model=bert()) == mask


def test_a_module_of_the_name_module_keeps_it_beside_others(tmp_path):
    save_file({"module.weight": torch.eye(3), "fc.weight": torch.eye(3) * 2}, tmp_path / "x.safetensors")
    assert set(mask_from_checkpoint(tmp_path, include="weight")) == {"module.weight", "fc.weight"}
    save_file({"a": torch.eye(3), "_orig_mod.a": torch.eye(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="must hold each tensor once; received 'a' twice"):
        mask_from_checkpoint(tmp_path, include="a")


def test_a_tied_head_is_no_second_weight(tmp_path):
    model = gpt2()
    mask = sparse(model)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in stored
    embedding = stored["transformer.wte.weight"]
    embedding[0, :3] = 0
    both = stored | {"lm_head.weight": embedding.clone()}
    for tensors in (stored, both):
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        assert mask_from_checkpoint(tmp_path, include=".*") == mask
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="one name; received 'lm_head.weight' and 'transformer.wte.weight' .* tied"):
        mask_from_checkpoint(tmp_path, include=["wte", "lm_head"])
    assert set(mask_from_checkpoint(tmp_path, include=["wte", "lm_head"], exclude="lm_head")) == {
        "transformer.wte.weight"
    }


def test_either_name_of_a_tied_weight_may_be_stored(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    mask = sparse(model)
    save_file({"b.weight": model["b"].weight.detach()}, tmp_path / "x.safetensors")
    assert mask_from_checkpoint(tmp_path, model=model) == mask
    assert list(mask) == ["a.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 0}, "must have every pruned weight of the checkpoint; received .*encoder.layer.0"),
        ({"num_hidden_layers": 2}, "must hold every weight; received none for .*encoder.layer.1"),
        ({"intermediate_size": 32}, "must fit the BertForSequenceClassification of config.json; received RuntimeError"),
        ({"hidden_size": "x"}, "must fit the BertForSequenceClassification .*expected int"),
        ({"hidden_act": "nonsense"}, "must fit the BertForSequenceClassification .*nonsense"),
    ],
)
def test_a_config_of_another_model_is_noticed(change, message, tmp_path):
    model = bert()
    sparse(model)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        mask_from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"fc._weight_qdata": torch.zeros(3, 3, dtype=torch.int8), "fc._weight_scale": torch.eye(3)},  # torchao
        {"fc.weight": torch.zeros(9, 1, dtype=torch.uint8), "fc.weight.absmax": torch.ones(1)},  # bitsandbytes, 4 bits
        {"fc.weight": torch.zeros(3, 3, dtype=torch.int8), "fc.SCB": torch.ones(3)},  # bitsandbytes, 8 bits
        {"fc.weight": torch.zeros(3, 3, dtype=torch.int8)},
        {"fc.qweight": torch.zeros(3, 3, dtype=torch.int32), "fc.scales": torch.eye(3)},  # GPTQ
        {"fc.weight_crow_indices": torch.arange(3), "fc.weight_values": torch.eye(3)},  # CSR
        {"fc.weight.ccol_indices": torch.arange(3), "fc.weight.values": torch.eye(3)},  # CSC
    ],
)
def test_codes_of_weights_are_refused(tensors, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="must hold plain weights; received a quantised or compressed one .fc"):
        mask_from_checkpoint(tmp_path, include=".*")


def test_integers_that_are_no_weights_are_left_out(tmp_path):
    causal = torch.ones(8, 8).tril().to(torch.uint8)
    save_file(
        {"fc.weight": torch.eye(3), "attn.bias": causal, "ids": torch.arange(4)[None]}, tmp_path / "x.safetensors"
    )
    assert mask_from_checkpoint(tmp_path, include=".*") == Mask({"fc.weight": torch.eye(3) > 0})


def test_complex_weights_have_zeros_too(tmp_path):
    save_file({"fc.weight": torch.eye(3) * 1j}, tmp_path / "x.safetensors")
    assert mask_from_checkpoint(tmp_path, include="fc") == Mask({"fc.weight": torch.eye(3) > 0})


@pytest.mark.parametrize("name", ["fc.parametrizations.weight.original", "fc.weight_v", "fc.weight_orig"])
def test_parts_of_a_parametrized_weight_are_refused(name, tmp_path):
    save_file({name: torch.eye(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=f"stored as the model uses them; received '{name}'"):
        mask_from_checkpoint(tmp_path, include="weight")
