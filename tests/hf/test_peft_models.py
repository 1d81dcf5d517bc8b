"""Masks, snapshots and tickets of a PEFT model are those of its base, whatever the adapter."""

import copy
import warnings

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from hf_lottery import (
    Mask,
    MaskMismatchError,
    Snapshot,
    Ticket,
    find_ticket,
    gather_evidence,
    keep_sparse,
    magnitude,
    norm_parameters,
    prunable,
    prune,
    score_weights,
)
from hf_lottery.connectivity import error_barrier
from hf_lottery.hf import LotteryArguments, LotteryTrainer
from hf_lottery.hf.adapter import merge_adapter
from hf_lottery.networks.names import adapter_weights, base_of, named_state, named_weights, replaced_weights
from hf_lottery.signs import SignedMask

# PEFT asks transformers for a property that goes away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
SIZES = dict(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
)
TARGETS = {"target_modules": ["q_proj", "down_proj"]}
TOKENS = {"num_virtual_tokens": 2}
ADAPTERS = {
    "LoRA": lambda: peft.LoraConfig(r=2, **TARGETS),
    "DoRA": lambda: peft.LoraConfig(r=2, use_dora=True, bias="all", **TARGETS),
    "LoRA of everything": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens", "lm_head", "v_proj"]),
    "LoRA and tokens": lambda: peft.LoraConfig(r=2, trainable_token_indices=[1, 2], **TARGETS),
    "AdaLoRA": lambda: peft.AdaLoraConfig(total_step=10, **TARGETS),
    "IA3": lambda: peft.IA3Config(**TARGETS, feedforward_modules=["down_proj"]),
    "LoHa": lambda: peft.LoHaConfig(r=2, **TARGETS),
    "VeRA": lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "tokens": lambda: peft.TrainableTokensConfig(token_indices=[1]),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", **TOKENS),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", **TOKENS),
    "adaption prompt": lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1),
    "a trained head": lambda: peft.LoraConfig(r=2, modules_to_save=["lm_head"], **TARGETS),
}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def adapted(base, name="LoRA"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        return peft.get_peft_model(copy.deepcopy(base), ADAPTERS[name]())


def half(model):
    return prune(score_weights(prunable(model), magnitude), 0.5)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_peft_model_has_the_weights_of_its_base(name):
    base = llama()
    plain, model = prunable(base), adapted(base, name)
    found = prunable(model)
    assert list(found) == list(plain) and found.kinds == plain.kinds and found.head == plain.head == ("lm_head",)
    assert equal(found, plain)
    assert list(named_weights(model)) == list(named_weights(base))
    assert equal(named_state(model), named_state(base))
    added = adapter_weights(model)
    assert added and {id(p) for p in added.values()}.isdisjoint(map(id, found.values()))
    assert {id(p) for p in model.parameters() if p.requires_grad and p.ndim > 1} <= {id(p) for p in added.values()}


@pytest.mark.parametrize("name", ADAPTERS)
def test_mask_snapshot_and_ticket_fit_both(name):
    base = llama()
    half(base).apply_(base)
    model = adapted(base, name)
    mask, start = Mask.from_model(prunable(model)), Snapshot.capture(model)
    assert mask == Mask.from_model(prunable(base)) and mask.sparsity == pytest.approx(0.5, abs=1e-3)
    assert start.sha256() == Snapshot.capture(base).sha256()
    adapters = {key: tensor.clone() for key, tensor in adapter_weights(model).items()}
    ticket = Ticket(mask, start, {"architecture": "LlamaForCausalLM"}, base.config)
    for other in (llama(), adapted(llama(), name)):
        ticket.apply_(other)
        assert equal(named_state(other), start.tensors)
    ticket.apply_(model)
    assert equal(adapter_weights(model), adapters)


def test_a_hold_on_a_peft_model_trains_the_adapter_alone():
    model = adapted(llama())
    mask = half(model)
    before, ids = model.state_dict(), torch.randint(1, 32, (2, 8))
    before = {name: tensor.clone() for name, tensor in before.items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    with keep_sparse(model, mask, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "lora_" in name} | {f"base_model.model.{n}" for n in _held(mask)}


def _held(mask):
    inner = ("q_proj", "down_proj")
    return {n.replace(".weight", ".base_layer.weight") if any(part in n for part in inner) else n for n in mask}


def test_other_ways_to_add_an_adapter():
    base = llama()
    names = list(prunable(base))
    injected, mixed, nested = copy.deepcopy(base), copy.deepcopy(base), nn.Module()
    injected.add_adapter(ADAPTERS["LoRA"]())
    mixed = peft.get_peft_model(mixed, ADAPTERS["LoRA"](), mixed=True)
    nested.inner = adapted(base, "a trained head")
    wrapped = nn.DataParallel(torch.compile(adapted(base), backend="eager"))
    for model in (injected, mixed, wrapped):
        assert list(prunable(model)) == names and list(named_state(model)) == list(named_state(base))
    assert list(prunable(nested, exclude="lm_head")) == [f"inner.{name}" for name in names]
    assert base_of(wrapped).config is wrapped.module.config and type(base_of(mixed)) is LlamaForCausalLM


def test_an_adapter_of_multihead_attention():
    base = nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True))
    config = peft.LoraConfig(r=2, target_modules=["self_attn", "linear1"])
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model(torch.randn(2, 3, 4))  # PEFT takes parameters out and puts others in
    assert list(prunable(model)) == list(prunable(base)) and half(model).apply_(model) is None
    assert Mask.from_model(prunable(model)).sparsity == pytest.approx(0.5, abs=0.05)
    with keep_sparse(model, half(model)):  # also when it ends
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
        model(torch.randn(2, 3, 4)).square().sum().backward()
        optimizer.step()


def test_a_module_that_is_trained_as_a_copy_is_left_out():
    base = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=2))
    config = peft.LoraConfig(r=2, task_type="SEQ_CLS", modules_to_save=["up_proj"], **TARGETS)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    gone = "model.layers.0.mlp.up_proj.weight"
    assert replaced_weights(model) == {gone, "score.weight"}
    with pytest.warns(UserWarning, match=rf"PEFT trains a copy of; left out: {gone}\.") as warned:
        found = prunable(model)
    assert len(warned) == 1 and found.keys() == prunable(base).keys() - {gone}
    assert list(prunable(model, exclude="up_proj")) == list(found)
    with pytest.raises(MaskMismatchError, match=rf"'{gone}' must name a parameter that the model computes with"):
        half(base).apply_(model)
    assert Mask.dense(model).keys() == Mask.dense(base).keys() - {gone, "score.weight"}


def test_an_adapter_cannot_be_selected():
    with pytest.raises(ValueError, match="received 'lora_A', which matches none"):
        prunable(adapted(llama()), include="lora_A")


def points(level_model, batch):
    return level_model(input_ids=batch, labels=batch).loss


@pytest.mark.parametrize("unfreeze", [False, True])
def test_a_search_of_a_peft_model_is_refused_before_it_trains(tmp_path, unfreeze):
    model = adapted(llama())
    for weight in prunable(model).values():
        weight.requires_grad_(unfreeze)
    with pytest.raises(ValueError, match=r"must rewind all that it trains; received adapters of PEFT, .*lora_A"):
        find_ticket(model, pytest.fail, within=prunable(model), sparsity=0.5)
    args = LotteryArguments(output_dir=str(tmp_path), sparsity=0.5, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="must rewind all that it trains"):
        LotteryTrainer(model, args, train_dataset=[{"input_ids": [1]}])


def test_a_search_of_frozen_weights_is_refused_before_it_trains():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    within = {f"{n}.weight": model[n].weight for n in (0, 1)}
    with pytest.raises(ValueError, match=r"must train every weight .*; received 0\.weight, which are frozen"):
        find_ticket(model, pytest.fail, within=within, sparsity=0.5)
    for adapters in adapted(llama()), adapted(llama(), "prompt"):
        for parameter in adapter_weights(adapters).values():
            parameter.requires_grad_(False)
        with pytest.raises(ValueError, match="must train every weight that it prunes"):
            find_ticket(adapters, pytest.fail, within=prunable(adapters), sparsity=0.5)


def test_an_adapter_without_numbers_is_not_merged():
    model = adapted(llama())
    mask = half(model)
    with pytest.raises(ValueError, match=r"must have its numbers in memory; received 'model\.embed_tokens\.weight'"):
        merge_adapter(model.to("meta"), mask)


def test_signs_norms_and_evidence_go_by_the_base():
    base = llama()
    model, ids = adapted(base), torch.randint(1, 32, (2, 8))
    assert list(norm_parameters(model)) == list(norm_parameters(base))
    signed = SignedMask.from_model(model, half(model))
    assert signed == SignedMask.from_model(base, half(base))
    found = gather_evidence(model, [ids], points, within=prunable(model), fields=["input_norm"])
    plain = gather_evidence(base, [ids], points, within=prunable(base), fields=["input_norm"])
    assert all(torch.equal(found[name].input_norm, plain[name].input_norm) for name in plain)


def test_a_line_between_two_peft_models_moves_the_adapters():
    base, ids = llama(), torch.randint(1, 32, (2, 8))
    ends = [adapted(base), adapted(base)]
    for end in ends:
        for parameter in adapter_weights(end).values():
            nn.init.normal_(parameter)
    errors = error_barrier(*ends, lambda model: points(model, ids).item(), points=3).errors
    assert len(set(errors)) == 3
