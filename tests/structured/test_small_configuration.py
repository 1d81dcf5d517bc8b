"""A configuration is found for what the class of a model can express, whatever its fields are called."""

import copy

import pytest
import torch
import transformers as hf

from hf_lottery import discover
from hf_lottery.networks.names import named_tensors
from hf_lottery.structured import shrunk
from hf_lottery.structured.configuration import expressed_config

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
GROUPED = {**SMALL, "num_key_value_heads": 2}
STAGES = {"depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}

# The class, its configuration, the fields that were cut, and the sizes that were cut.
CASES = {
    "units": (hf.BertModel, {**SMALL, "intermediate_size": 48}, {"intermediate_size": 24}, [(48, 24)]),
    "grouped heads": (
        hf.LlamaForCausalLM, {**GROUPED, "intermediate_size": 48, "head_dim": 8},
        {"num_attention_heads": 2, "num_key_value_heads": 1}, [(4, 2), (2, 1), (32, 16), (16, 8)],
    ),
    "heads and units": (
        hf.T5EncoderModel, {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "vocab_size": 100},
        {"num_heads": 3, "d_ff": 40}, [(4, 3), (48, 40), (32, 24)],
    ),
    "one entry of a list": (
        hf.ResNetModel, {**STAGES, "hidden_sizes": [8, 16]}, {"hidden_sizes": [8, 12]}, [(16, 12)],
    ),
}  # fmt: skip


def shapes(kind, config):
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(kind(copy.deepcopy(config))).items()}


@pytest.mark.parametrize("case", CASES)
def test_the_fields_that_were_cut_are_found(case):
    kind, values, cut, sizes = CASES[case]
    config = kind.config_class(**values)
    before = config.to_dict()
    wanted = kind.config_class(**{**values, **cut})
    found = expressed_config(config, kind, shapes(kind, wanted), sizes=sizes, proves=lambda _: True)
    assert found is not None and found.to_dict() == wanted.to_dict()
    assert config.to_dict() == before


def test_what_the_class_cannot_express_has_no_configuration():
    config = hf.BertConfig(**SMALL, intermediate_size=48)
    wanted = shapes(hf.BertModel, config)
    wanted["encoder.layer.0.intermediate.dense.weight"] = (24, 32)  # the second layer keeps its width
    wanted["encoder.layer.0.intermediate.dense.bias"] = (24,)
    wanted["encoder.layer.0.output.dense.weight"] = (32, 24)
    assert expressed_config(config, hf.BertModel, wanted, sizes=[(48, 24)], proves=lambda _: True) is None


def test_shapes_alone_are_no_proof():
    config, cut = hf.BertConfig(**SMALL, intermediate_size=48), hf.BertConfig(**SMALL, intermediate_size=24)
    asked = []

    def refuses(given):
        asked.append(given.intermediate_size)

    assert expressed_config(config, hf.BertModel, shapes(hf.BertModel, cut), sizes=[(48, 24)], proves=refuses) is None
    assert asked and set(asked) == {24}


def test_a_field_that_changes_no_shape_is_tried_where_the_proof_asks_for_it():
    config, cut = hf.BertConfig(**SMALL, intermediate_size=48), hf.BertConfig(**SMALL, intermediate_size=24)
    found = expressed_config(
        config, hf.BertModel, shapes(hf.BertModel, cut), sizes=[(48, 24), (4, 2)],
        proves=lambda given: given.num_attention_heads == 2,
    )  # fmt: skip
    assert found is not None and found.num_attention_heads == 2


def small_llama(shares):
    """Cut half of what the patterns name from a small Llama."""
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, intermediate_size=48)).eval()
    spec = discover(model, {"input_ids": torch.arange(20).reshape(2, 10)})
    units = {name: torch.arange(spec.groups[name].size) >= cut for pattern, cut in shares.items()
             for name in spec.select(pattern)}  # fmt: skip
    return model, shrunk(model, spec, units)


def test_a_small_model_knows_its_sizes_and_is_saved_and_loaded_as_any_model(tmp_path):
    model, found = small_llama({"mlp": 24, r"q_proj.weight\[0\]$": 1})
    assert found.config_fits and not found.refused
    config = found.model.config
    assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (24, 2, 1)
    assert all(getattr(module, "config", config) is config for module in found.model.modules())
    assert model.config.intermediate_size == 48 and model.model.layers[0].self_attn.config.num_key_value_heads == 2
    found.model.save_pretrained(tmp_path)
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        assert torch.allclose(loaded(tokens).logits, found.model(tokens).logits, rtol=0, atol=1e-6)


def test_a_small_model_that_its_class_cannot_express_keeps_its_configuration():
    model, found = small_llama({r"layers\.0\.mlp": 24})
    assert not found.config_fits and not found.refused
    assert found.model.config.to_dict() == model.config.to_dict()


def test_fields_that_check_themselves_and_classes_that_take_more_are_left():
    config = hf.ResNetConfig(**STAGES, hidden_sizes=[8, 16], out_indices=[1, 2])
    assert expressed_config(config, hf.ResNetModel, {}, sizes=[(1, 2)], proves=lambda _: True) is None
    assert expressed_config(config, lambda _: 1 / 0, {}, sizes=[(8, 4)], proves=lambda _: True) is None


def test_a_model_of_which_nothing_was_cut_is_saved_as_any_model():
    model, found = small_llama({r"embed_tokens\.weight\[1\]": 16})  # a stream under norms
    assert found.refused and found.config_fits
    assert found.model.config.to_dict() == model.config.to_dict()
