"""Which kinds of PEFT adapters merge_adapter merges, and which it refuses."""

import copy

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import KasaConfig, LoraGAConfig
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_lottery import Mask, prunable
from hf_lottery.hf.adapter import merge_adapter

TARGETS = ["q_proj", "down_proj"]
pytestmark = [
    # PEFT asks transformers for a property that goes away, and the weights of random adapters are of no kind.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:the mask dropped .* of the norm:UserWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:.* frozen parameters are covered:UserWarning"),  # PEFT froze the base
]


def sparse(include=None, **changes):
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, num_key_value_heads=2, **(sizes | changes))).eval()
    weights = prunable(model) if include is None else {include: model.get_parameter(include)}
    mask = Mask({name: torch.rand(p.shape) > 0.6 for name, p in weights.items()})
    mask.apply_(model)
    return model, mask


def trained(base, config):
    model = get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
    return model


def lora(**settings):
    return LoraConfig(**{"r": 2, "target_modules": TARGETS, **settings})


RIGHT = {
    "rslora": lambda: lora(use_rslora=True, lora_alpha=3),
    "dora with a head": lambda: lora(use_dora=True, modules_to_save=["lm_head"]),
    "bias": lambda: lora(bias="all"),
    "gaussian": lambda: lora(init_lora_weights="gaussian"),
    "orthogonal": lambda: lora(init_lora_weights="orthogonal"),
    "eva": lambda: lora(init_lora_weights="eva"),
    "embedding": lambda: lora(target_modules=["embed_tokens", "q_proj"]),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=TARGETS, init_r=2, total_step=10),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=TARGETS),
    "lokr": lambda: peft.LoKrConfig(r=2, target_modules=TARGETS),
    "oft": lambda: peft.OFTConfig(oft_block_size=2, target_modules=TARGETS),
    "vera": lambda: peft.VeraConfig(r=2, target_modules=TARGETS),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.parametrize("biased", [False, True])
def test_these_are_what_peft_merges_masked(kind, biased):
    base, mask = sparse(attention_bias=biased)
    model = trained(base, RIGHT[kind]())
    wanted = copy.deepcopy(model).merge_and_unload()
    mask.apply_(wanted)
    merged, wanted = merge_adapter(model, mask), wanted.state_dict()
    assert Mask.from_model(prunable(merged)) & mask == Mask.from_model(prunable(merged))
    assert merged.state_dict().keys() == wanted.keys()
    assert all(torch.allclose(tensor, wanted[name], atol=1e-6) for name, tensor in merged.state_dict().items())


MOVED = {
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "pissa_niter_4": lambda: lora(init_lora_weights="pissa_niter_4"),
    "olora": lambda: lora(init_lora_weights="olora"),
    "lora_ga": lambda: lora(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()),
    "kasa": lambda: lora(kasa_config=KasaConfig()),
}


@pytest.mark.parametrize("kind", MOVED)
def test_adapters_that_changed_their_base_are_refused(kind):
    base, mask = sparse()
    with pytest.raises(ValueError, match=f"leave the base weights .* received 'default' of the kind '{kind}'"):
        merge_adapter(trained(base, MOVED[kind]()), mask)


def test_one_of_several_adapters_is_enough_to_change_the_base():
    base, mask = sparse()
    model = get_peft_model(base, lora(init_lora_weights="pissa"), adapter_name="first")
    model.add_adapter("second", lora())
    model.set_adapter("second")
    with pytest.raises(ValueError, match="received 'first' of the kind 'pissa'"):
        merge_adapter(model, mask)


def test_loftq_is_known_by_its_setting():
    base, mask = sparse()
    model = trained(base, lora())
    model.peft_config["default"].init_lora_weights = "loftq"  # making one needs bitsandbytes
    with pytest.raises(ValueError, match="of the kind 'loftq'"):
        merge_adapter(model, mask)


@pytest.mark.parametrize(
    "config",
    [
        lambda: lora(alora_invocation_tokens=[1, 2]),
        lambda: lora(lora_bias=True),
        lambda: peft.BeftConfig(target_modules=TARGETS),
        lambda: peft.PolyConfig(r=2, target_modules=TARGETS),
    ],
    ids=["alora", "lora_bias", "beft", "poly"],
)
def test_what_peft_cannot_merge_is_refused_and_nothing_changes(config):
    base, mask = sparse()
    model = trained(base, config())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"must be one that PEFT can merge; received [A-Z]\w+Error: .*\. Activate other adapters"
    ):
        merge_adapter(model, mask)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_copies_of_norms_under_a_mask_are_refused():
    base, mask = sparse(include="model.layers.0.input_layernorm.weight")
    model = trained(base, peft.LNTuningConfig(target_modules=["input_layernorm"]))
    with pytest.raises(ValueError, match="'model.layers.0.input_layernorm', which cannot be masked by name"):
        merge_adapter(model, mask)


def test_pruned_biases_that_an_adapter_trained_are_refused():
    base, mask = sparse(include="model.layers.0.self_attn.q_proj.bias", attention_bias=True)
    with pytest.raises(ValueError, match="The adapter's setting `bias` trains the biases of the base itself"):
        merge_adapter(trained(base, lora(bias="all")), mask)


class Coded(torch.Tensor):
    """A tensor that keeps codes of its numbers, as torchao's do, and calls itself float32."""


def test_a_base_of_coded_tensors_is_refused():
    base, mask = sparse()
    model = trained(base, lora())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Coded), requires_grad=False)
    with pytest.raises(ValueError, match="is quantised. Load the base model without"):
        merge_adapter(model, mask)
