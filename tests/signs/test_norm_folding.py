"""fold_norms_(): the function stays, the norms become the identity, and what cannot be folded is left alone."""

import copy

import pytest
import torch
from pre_norm_networks import Block, Case, OnePlusNorm, same, state
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from hf_lottery.signs.norm_folding import fold_norms_
from hf_lottery.signs.norms import norm_parameters

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {"input_ids": torch.arange(14).reshape(2, 7)}
OTHER_TEXT = {"input_ids": torch.arange(29, 2, -1).reshape(3, 9)}


def vit():
    return ViTForImageClassification(ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=3))


def gpt2(tied: bool):
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12, "vocab_size": 30}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied))


def llama(tied: bool = False):
    return LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=30, tie_word_embeddings=tied))


def gemma():
    config = GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=8, vocab_size=30, tie_word_embeddings=False)
    return GemmaForCausalLM(config)


def bert(kind: type):
    return kind(BertConfig(**SMALL, vocab_size=30, max_position_embeddings=12))


def t5():
    return T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=30))


@torch.no_grad()
def stirred(model: nn.Module) -> nn.Module:
    """In float64, with gains of both signs that are powers of two: exact also where a norm computes in float32."""
    model.double().eval()
    norms = norm_parameters(model)
    for name, parameter in model.named_parameters():
        if name in norms and name.endswith("weight"):
            gain = 2.0 ** torch.randint(-2, 3, parameter.shape) * (torch.randint(0, 2, parameter.shape) * 2 - 1)
            parameter.copy_(gain - int("Gemma" in norms.kinds[name]))
        else:
            parameter.add_(torch.randn_like(parameter) * (0.5 if parameter.ndim == 1 else 0.2))
    return model


@torch.no_grad()
def outputs(model: nn.Module, inputs) -> torch.Tensor:
    return model(**inputs).logits if isinstance(inputs, dict) else model(inputs)


def check(model: nn.Module, seen, other) -> set[str]:
    """Fold on some inputs; the outputs on others stay. Returns the norms that were left alone."""
    before, old = outputs(model, other), state(model)
    folded = fold_norms_(model, seen)
    torch.testing.assert_close(outputs(model, other), before, rtol=1e-10, atol=1e-10)
    names = {name.rpartition(".")[0]: None for name in norm_parameters(model)}
    assert list(folded) == [name for name in names if name in folded]
    for name in names:
        norm = model.get_submodule(name)
        if name not in folded:
            assert all(torch.equal(value, old[f"{name}.{part}"]) for part, value in norm.state_dict().items())
            continue
        assert (norm.weight == (0 if "Gemma" in type(norm).__name__ else 1)).all()
        assert getattr(norm, "bias", None) is None or not norm.bias.any()
        assert not torch.equal(norm.weight, old[f"{name}.weight"])
    again = state(model)
    assert fold_norms_(model, seen) == folded and same(model, again)
    return names.keys() - set(folded)


def test_vit():
    images = torch.randn(2, 3, 8, 8).double(), torch.randn(5, 3, 8, 8).double()
    seen, other = ({"pixel_values": x} for x in images)
    assert check(stirred(vit()), seen, other) == {"vit.layernorm"}  # the head reads one token of it


@pytest.mark.parametrize(("tied", "shift"), [(False, True), (False, False), (True, False)])
def test_gpt2(tied, shift):
    """The head has no bias: the last norm can be folded if it has no shift and the head is no embedding."""
    model = stirred(gpt2(tied))
    if not shift:
        nn.init.zeros_(model.transformer.ln_f.bias)
    assert check(model, TEXT, OTHER_TEXT) == ({"transformer.ln_f"} if tied or shift else set())


@pytest.mark.parametrize("tied", [False, True])
def test_llama(tied):
    assert check(stirred(llama(tied)), TEXT, OTHER_TEXT) == ({"model.norm"} if tied else set())


def test_gemma():
    """The gain is 1 + weight."""
    assert check(stirred(gemma()), TEXT, OTHER_TEXT) == set()


def test_bert_is_left_alone():
    model = stirred(bert(BertForMaskedLM))
    left = check(model, TEXT, OTHER_TEXT)  # all but the last, which only the head reads, not the residual stream
    assert left == {name.rpartition(".")[0] for name in norm_parameters(model)} - {
        "bert.encoder.layer.1.output.LayerNorm"
    }
    model = stirred(bert(BertForSequenceClassification))
    before = state(model)
    message = r"must have a layer or RMS norm that only .* received BertForSequenceClassification, .*for none of 5"
    with pytest.raises(ValueError, match=message):
        fold_norms_(model, TEXT)
    assert same(model, before)


def test_what_forward_returns_is_what_stays():
    """The encoder's last norm feeds linear layers only, but it is an output of the model."""
    model = stirred(t5())
    inputs = {**TEXT, "decoder_input_ids": TEXT["input_ids"]}
    last = {"encoder.final_layer_norm", "decoder.final_layer_norm"}  # the second is scaled for a tied head
    assert check(copy.deepcopy(model), inputs, inputs) == last
    before = outputs(model, inputs)
    assert last - set(fold_norms_(model, inputs, forward=outputs)) == {"decoder.final_layer_norm"}
    torch.testing.assert_close(outputs(model, inputs), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("make", "has_shift"),
    [
        (lambda: nn.LayerNorm(4), True),
        (lambda: nn.LayerNorm(4, bias=False), False),
        (lambda: nn.RMSNorm(4), False),
        (lambda: OnePlusNorm(4), True),
    ],
)
def test_hand_made_pre_norm(make, has_shift, bias):
    model = nn.Sequential(Block(make(), bias), Block(make(), True)).double()
    with torch.no_grad():
        for parameter in norm_parameters(model).values():
            parameter.copy_(torch.randn_like(parameter))
    x, old = torch.randn(3, 5, 4).double(), state(model)
    before = model.eval()(x)
    assert fold_norms_(model.train(), (x,)) == (("1.norm",) if has_shift and not bias else ("0.norm", "1.norm"))
    torch.testing.assert_close(model.eval()(x), before, rtol=1e-12, atol=1e-12)
    offset = isinstance(model[1].norm, OnePlusNorm)
    torch.testing.assert_close(model[1].q.weight.detach(), old["1.q.weight"] * (old["1.norm.weight"] + offset))
    assert (model[1].norm.weight == 1 - offset).all() and not (has_shift and model[1].norm.bias.any())


def test_column_signs_flip_and_pruned_weights_stay_zero():
    model = stirred(gpt2(False))
    layer, norm = model.transformer.h[0].mlp.c_fc, model.transformer.h[0].ln_2
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) > 0.6)
    old, gain = layer.weight.detach().clone(), norm.weight.detach().clone()
    fold_norms_(model, TEXT)
    assert (gain < 0).any() and (gain > 0).any() and (old == 0).any()
    assert torch.equal(layer.weight.sign(), old.sign() * gain.sign()[:, None])  # [in, out]
    assert torch.equal(layer.weight == 0, old == 0)


def test_outputs_are_told_apart_where_memory_is_used_again():
    class Dropped(nn.Sequential):
        def forward(self, x):
            for _ in range(9):
                self[0](x)
            return self[1](x)

    assert fold_norms_(Dropped(nn.LayerNorm(4), Block(nn.LayerNorm(4))), torch.randn(2048, 4)) == ("1.norm",)


def test_modes_hooks_and_randomness_stay():
    model = nn.DataParallel(nn.Sequential(Block(nn.LayerNorm(4)), nn.Dropout(0.5)).train())
    model.module[1].eval()
    nn.init.normal_(model.module[0].norm.weight)
    x, seed = torch.randn(2, 3, 4), torch.get_rng_state()
    assert fold_norms_(model, {"input": x}) == ("0.norm",)
    assert torch.equal(torch.get_rng_state(), seed)
    assert [module.training for module in model.modules()] == [True] * 6 + [False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [vit, gemma])
def test_low_precision(build, dtype):
    model = stirred(build()).to(dtype)
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8).to(dtype)} if build is vit else TEXT
    before = outputs(model, inputs)
    assert len(fold_norms_(model, inputs)) == (4 if build is vit else 5)
    bound = 1e-5 if dtype == torch.float32 else 0.05
    assert (outputs(model, inputs) - before).norm() / before.norm() < bound


def test_a_changed_function_is_undone():
    """Whatever the pass does not show, here a head that knows its reader's weights as numbers."""
    model = Case(lambda net, x: net.a(net.norm(x)) * net.a.weight.data.tolist()[0][0])
    nn.init.normal_(model.norm.weight)
    before = state(model)
    with pytest.raises(RuntimeError, match="must leave the outputs within 0.0003; received a relative change of"):
        fold_norms_(model, torch.randn(2, 4, 4))
    assert same(model, before)
    calls = []

    def forward(net, x):
        calls.append(x)
        if len(calls) == 2:
            assert not same(net, before)
            raise KeyboardInterrupt
        return net.a(net.norm(x))

    with pytest.raises(KeyboardInterrupt):
        fold_norms_(model, torch.randn(2, 4, 4), forward=forward)
    assert same(model, before) and len(calls) == 2


def test_overflow_is_undone():
    model = nn.Sequential(nn.RMSNorm(2), nn.Linear(2, 3))
    nn.init.constant_(model[0].weight, 1e30)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1e30, 1e-30]))  # times a feature that is always 0
    before = state(model)
    with pytest.raises(RuntimeError, match="received a relative change of inf"):
        fold_norms_(model, torch.tensor([[0.0, 1.0]]))
    assert same(model, before)


def test_bad_input():
    model = Block(nn.LayerNorm(4))
    before = state(model)
    with pytest.raises(TypeError, match=r"the model must be a torch.nn.Module; received list"):
        fold_norms_([], None)
    message = "the forward pass must return floating-point tensors to compare; received NoneType"
    with pytest.raises(ValueError, match=message):
        fold_norms_(model, torch.randn(2, 4), forward=lambda net, x: None)
    with pytest.raises(ValueError, match="received Linear, where this holds for none of 0"):
        fold_norms_(nn.Linear(4, 4), torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        fold_norms_(model, torch.randn(2, 3))
    assert same(model, before) and not model.norm._forward_hooks
