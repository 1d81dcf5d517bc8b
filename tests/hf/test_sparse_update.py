"""LoRA adapters whose update stays within the mask: what is trained is what is merged."""

import copy
import warnings

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from small_texts import alive, llama, mask_of, rows
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lottery import Mask, MaskMismatchError, keep_sparse
from hf_lottery.hf.adapter import merge_adapter
from hf_lottery.hf.sparse_update import keep_update_sparse

# PEFT's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
IDS = torch.tensor([row["input_ids"] for row in rows()[:4]])
TARGETS = ["q_proj", "down_proj"]


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=19, n_embd=16, n_layer=1, n_head=2, n_positions=16)).eval()


def lora(**settings):
    return LoraConfig(**{"r": 2, "target_modules": TARGETS, "init_lora_weights": False, **settings})


def sparse(build=llama, dtype=torch.float32):
    model = build().to(dtype)
    mask = mask_of(model, 0.3)
    mask.apply_(model)
    return model, mask


def adapted(config, build=llama, dtype=torch.float32):
    base, mask = sparse(build, dtype)
    model = get_peft_model(base, config).eval()
    keep_update_sparse(model, mask)
    return model, mask


def train(model, mask, steps=3):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, 0.01)
    with keep_sparse(model, mask, optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("build", "config"),
    [
        (llama, lora()),
        (llama, lora(use_rslora=True, lora_alpha=5, target_modules="all-linear")),
        (gpt2, lora(target_modules=["c_attn", "c_proj"])),
    ],
    ids=["llama", "rslora", "gpt2"],
)
def test_what_is_trained_is_what_is_merged(build, config, dtype):
    model, mask = adapted(config, build, dtype)
    train(model, mask)
    before = model(IDS).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = merge_adapter(model, mask)
    assert torch.allclose(merged(IDS).logits, before, atol=1e-5 if dtype is torch.float32 else 0.1, rtol=1e-2)
    assert alive(merged, mask) == 0


def test_without_it_the_merged_model_is_another_one_and_the_warning_says_what_to_do():
    base, mask = sparse()
    model = get_peft_model(base, lora()).eval()
    before = model(IDS).logits
    with pytest.warns(UserWarning, match=r"the mask dropped .*keep_update_sparse\(model, mask\)"):
        merged = merge_adapter(model, mask)
    assert not torch.allclose(merged(IDS).logits, before, atol=1e-3)


def test_gradients_are_those_of_a_masked_update():
    model, mask = adapted(lora(target_modules=["q_proj"]))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 16)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    keep = mask["model.layers.0.self_attn.q_proj.weight"]
    weight = layer.base_layer.weight + keep * (b @ a) * layer.scaling["default"]
    wanted = torch.autograd.grad((x @ weight.T).square().sum(), (a, b))
    found = torch.autograd.grad(layer(x).square().sum(), (a, b))
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(wanted, found, strict=True))


def test_it_counts_for_the_adapters_that_are_active_and_once():
    model, mask = adapted(lora())
    model.add_adapter("other", lora())
    model.base_model.set_adapter(["default", "other"])
    keep_update_sparse(model, mask)
    before = model(IDS).logits
    with model.disable_adapter():
        bare = model(IDS).logits
    assert torch.equal(bare, sparse()[0](IDS).logits)
    assert torch.allclose(merge_adapter(model, mask)(IDS).logits, before, atol=1e-5)


def test_it_is_called_again_where_the_adapter_is_loaded(tmp_path):
    model, mask = adapted(lora())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(sparse()[0], tmp_path).eval()
    assert not torch.allclose(loaded(IDS).logits, model(IDS).logits, atol=1e-3)
    keep_update_sparse(loaded, mask)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_a_merge_with_another_mask_still_warns():
    model, mask = adapted(lora())
    fewer = Mask({name: entry & (torch.rand(entry.shape) < 0.5) for name, entry in mask.items()})
    fewer.apply_(model)
    with pytest.warns(UserWarning, match="the mask dropped"):
        merge_adapter(model, fewer)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lora(use_dora=True), "LoRA of the kind Dora"),
        (lora(lora_dropout=0.1), "has a dropout"),
        (IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]), "an adapter of the kind Linear"),
    ],
)
def test_an_update_that_cannot_be_masked_is_refused(config, reason):
    base, mask = sparse()
    model = get_peft_model(base, config)
    with pytest.raises(ValueError, match=rf"must be one matrix that is added; received '.*', which .*{reason}"):
        keep_update_sparse(model, mask)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("config", [lora(use_dora=True), lora(lora_dropout=0.1)])
def test_an_adapter_that_comes_later_and_cannot_be_masked_is_refused_when_it_is_used(config):
    model, _ = adapted(lora())
    model.add_adapter("later", config)
    model(IDS)
    model.set_adapter("later")
    with pytest.raises(ValueError, match="the update of an active adapter must be one matrix"):
        model(IDS)


def test_a_dense_base_is_refused_before_anything_is_trained():
    base, mask = sparse()
    base.get_parameter(name := next(iter(mask))).data += 1
    with pytest.raises(ValueError, match=rf"must be zero where the mask prunes; received .* in '{name}'. Call mask"):
        keep_update_sparse(get_peft_model(base, lora()), mask)


def test_what_is_no_peft_model_or_has_nothing_to_mask_is_refused():
    base, mask = sparse()
    with pytest.raises(TypeError, match="must be a PEFT model; received LlamaForCausalLM"):
        keep_update_sparse(base, mask)
    model = get_peft_model(base, lora(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="must cover an adapted layer; received adapters for lm_head.weight"):
        keep_update_sparse(model, mask)
    with pytest.raises(MaskMismatchError):
        keep_update_sparse(model, Mask.dense(nn.Linear(2, 2)))


def test_adapters_by_row_of_a_batch_are_refused():
    model, _ = adapted(lora())
    with pytest.raises(NotImplementedError, match="must use the same adapters throughout"):
        model(IDS, adapter_names=["default"] * 4)


def test_a_copy_of_the_model_keeps_it():
    model, mask = adapted(lora())
    again = copy.deepcopy(model)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert torch.allclose(merge_adapter(again, mask)(IDS).logits, model(IDS).logits, atol=1e-5)
