import copy
import warnings

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, ShiraConfig, get_peft_model
from small_task import vit
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hf_lottery import Mask, MaskMismatchError, SparsityLeakError, prunable
from hf_lottery.hf.adapter import merge_adapter

TEXT = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
DROPPED = "the mask dropped .* of the norm"
pytestmark = [
    # PEFT asks transformers for a property that goes away.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings(f"ignore:{DROPPED}:UserWarning"),
    # PEFT leaves a merged base frozen.
    pytest.mark.filterwarnings("ignore:.*frozen parameters are covered:UserWarning"),
]


def bert():
    return BertForSequenceClassification(BertConfig(num_hidden_layers=1, **TEXT)).eval()


def llama(tied=False):
    config = LlamaConfig(num_hidden_layers=1, num_key_value_heads=2, tie_word_embeddings=tied, **TEXT)
    return LlamaForCausalLM(config).eval()


TARGETS = {bert: ["query", "value", "dense"], llama: ["q_proj", "down_proj"], vit: ["q_proj", "fc1"]}


def sparse(build, dtype=torch.float32):
    """A sparse model and its mask, the task head covered."""
    model = (build(0) if build is vit else build()).to(dtype)
    mask = Mask({name: torch.rand(p.shape) > 0.6 for name, p in prunable(model, include=".*").items()})
    mask.apply_(model)
    return model, mask


def lora(targets, **settings):
    return LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **settings)


def state(model):
    return copy.deepcopy(model.state_dict())


def same(model, before):
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def expected(base, mask, peft, adapters=("default",)):
    """``base + mask * update`` from the factors of each LoRA, in the order and precision of PEFT."""
    wanted = {name: p.detach().clone() for name, p in base.named_parameters()}
    for path, module in peft.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        name = path.removeprefix("base_model.model.") + ".weight"
        for adapter in adapters:
            if adapter in module.lora_A:
                wide = [part[adapter].weight.detach().float() for part in (module.lora_B, module.lora_A)]
                update = (wide[0] @ wide[1] * module.scaling[adapter]).to(wanted[name].dtype)
                wanted[name] += update
        wanted[name] *= mask[name]
    return wanted


@pytest.mark.parametrize(("build", "dtype"), [(bert, torch.float32), (llama, torch.bfloat16), (vit, torch.float32)])
def test_the_update_is_masked_and_nothing_else_changes(build, dtype):
    base, mask = sparse(build, dtype)
    peft = get_peft_model(copy.deepcopy(base), lora(TARGETS[build]), autocast_adapter_dtype=False)
    wanted = expected(base, mask, peft)
    with pytest.warns(UserWarning, match=rf"{DROPPED}.*most of all in '.*weight' \(\d"):
        merged = merge_adapter(peft, mask)
    assert type(merged) is type(base)
    after = dict(merged.named_parameters())
    assert after.keys() == wanted.keys() and all(torch.equal(after[name], wanted[name]) for name in wanted)
    assert Mask.from_model(prunable(merged, include=".*")) == mask
    changed = [name for name, p in base.named_parameters() if not torch.equal(p, after[name])]
    assert changed and all(any(f"{target}." in name for target in TARGETS[build]) for name in changed)


def test_only_active_adapters_count_and_several_add_up():
    base, mask = sparse(bert)
    peft = get_peft_model(copy.deepcopy(base), lora(["query"]), adapter_name="x")
    peft.add_adapter("y", lora(["query", "key"], lora_alpha=3))
    peft.add_adapter("z", lora(["value"]))
    peft.base_model.set_adapter(["x", "y"])
    wanted = expected(base, mask, peft, ("x", "y"))
    after = merge_adapter(peft, mask).state_dict()
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)


def test_the_share_that_is_dropped():
    base = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    mask = Mask({"0.weight": torch.tensor([[True, False], [True, True]]), "1.weight": torch.ones(2, 2) > 0})
    mask.apply_(base)
    peft = get_peft_model(base, LoraConfig(r=1, lora_alpha=1, target_modules=["0", "1"]))
    for name, p in peft.named_parameters():
        if "lora_" in name:
            nn.init.ones_(p)  # every update is 1: the mask drops 1 of 4 and 0 of 4, a share of sqrt(1 / 8) of the norm
    with pytest.warns(UserWarning, match=r"dropped 35.4% .* most of all in '0.weight' \(50.0%\)"):
        merge_adapter(peft, mask)


def test_an_adapter_within_the_mask_loses_nothing():
    base, mask = sparse(bert)
    config = IA3Config(target_modules=["query"], feedforward_modules=[], init_ia3_weights=False)
    peft = get_peft_model(base, config).eval()
    batch = torch.arange(6)[None]
    before = peft(batch).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = merge_adapter(peft, mask)
    assert torch.allclose(merged(batch).logits, before, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize(
    "config",
    [lora(["query"], use_dora=True), ShiraConfig(r=1, target_modules=["query"], init_weights=False)],
    ids=["dora", "shira"],
)
def test_other_adapters_are_what_peft_merges_masked(config):
    base, mask = sparse(bert)
    peft = get_peft_model(base, config)
    wanted = copy.deepcopy(peft).merge_and_unload()
    mask.apply_(wanted)
    assert same(merge_adapter(peft, mask), wanted.state_dict())


def test_trained_copies_of_modules_are_masked_too():
    base, mask = sparse(bert)
    peft = get_peft_model(base, lora(["query"], modules_to_save=["classifier"]))
    head = peft.base_model.model.classifier.modules_to_save["default"]
    nn.init.ones_(head.weight)
    merged = merge_adapter(peft, mask)
    assert torch.equal(merged.classifier.weight, mask["classifier.weight"].float())


def test_weights_outside_the_mask_take_the_whole_update():
    base, mask = sparse(bert)
    mask = Mask({name: entry for name, entry in mask.items() if "query" not in name})
    peft = get_peft_model(base, lora(["query", "word_embeddings"]))
    wanted = copy.deepcopy(peft).merge_and_unload().state_dict()
    assert same(merge_adapter(peft, mask), wanted)


def test_a_merged_model_is_saved_sparse(tmp_path):
    base, mask = sparse(vit)
    merged = merge_adapter(get_peft_model(base, lora(["q_proj"])), mask)
    merged.save_pretrained(tmp_path)
    assert Mask.from_model(prunable(type(base).from_pretrained(tmp_path), include=".*")) == mask


def break_adapter(peft, mask):
    with torch.no_grad():
        list(p for name, p in peft.named_parameters() if "lora_B" in name)[-1][0] = float("nan")
    return mask


def other_mask(peft, mask):
    return Mask({**mask, "no.such.weight": torch.ones(2) > 0})


def dense_base(peft, mask):
    return Mask({name: torch.zeros_like(entry) if "key" in name else entry for name, entry in mask.items()})


def merge_first(peft, mask):
    peft.merge_adapter()
    return mask


def quantise(peft, mask):
    peft.base_model.model.bert.encoder.layer[0].attention.self.query.base_layer.register_buffer(
        "scale", torch.ones(2, dtype=torch.int8)
    )
    return mask


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (break_adapter, ValueError, "NaNs detected"),
        (other_mask, MaskMismatchError, "must name a parameter"),
        (dense_base, ValueError, "must be zero where the mask prunes; received .*key.weight'"),
        (merge_first, ValueError, "is already merged. Load the base model and the adapter again"),
        (quantise, ValueError, "is quantised. Load the base model without"),
    ],
)
def test_nothing_changes_where_it_fails(harm, error, message):
    base, mask = sparse(bert)
    peft = get_peft_model(base, lora(["query", "value"]))
    mask = harm(peft, mask)
    before, merged = state(peft), [list(m.merged_adapters) for m in peft.modules() if hasattr(m, "merged_adapters")]
    with pytest.raises(error, match=message):
        merge_adapter(peft, mask)
    if harm is break_adapter:  # NaN equals nothing
        before = {name: value.nan_to_num(7) for name, value in before.items()}
        peft.load_state_dict({name: value.nan_to_num(7) for name, value in peft.state_dict().items()})
    assert same(peft, before)
    assert [list(m.merged_adapters) for m in peft.modules() if hasattr(m, "merged_adapters")] == merged


def test_a_warning_that_is_an_error_undoes_the_merge():
    base, mask = sparse(bert)
    peft = get_peft_model(base, lora(["query"], modules_to_save=["classifier"]))
    nn.init.ones_(peft.base_model.model.classifier.modules_to_save["default"].weight)
    before = state(peft)
    with warnings.catch_warnings(), pytest.raises(UserWarning, match=DROPPED):
        warnings.simplefilter("error")
        merge_adapter(peft, mask)
    assert same(peft, before)
    assert not any(module.merged_adapters for module in peft.modules() if hasattr(module, "lora_A"))


def test_a_quantised_transformers_model_is_refused():
    base, mask = sparse(bert)
    peft = get_peft_model(base, lora(["query"]))
    base.hf_quantizer = object()
    with pytest.raises(ValueError, match="is quantised"):
        merge_adapter(peft, mask)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_tied_weights_is_refused(target):
    base, mask = sparse(lambda: llama(tied=True))
    with pytest.raises(ValueError, match="is tied to other weights. Load the base model with tie_word_embeddings=Fal"):
        merge_adapter(get_peft_model(base, lora([target])), mask)


def test_adapters_that_have_no_names_of_weights_are_refused():
    base, mask = sparse(bert)
    with pytest.raises(ValueError, match="cannot be masked by name"):
        merge_adapter(get_peft_model(base, lora(["query"], trainable_token_indices=[1, 2])), mask)
    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match="cannot be masked by name"):
        merge_adapter(get_peft_model(attention, lora(["0"])), mask)


def test_what_is_no_mergeable_peft_model_is_refused():
    base, mask = sparse(bert)
    prompts = get_peft_model(base, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    for model in (bert(), prompts):
        with pytest.raises(TypeError, match="must be a PEFT model with adapters that can be merged; received"):
            merge_adapter(model, mask)


def test_a_peft_that_merges_once_more_is_noticed():
    base, mask = sparse(bert)
    peft = get_peft_model(base, lora(["query"]))
    peft.merge_and_unload = lambda **options: copy.deepcopy(base)
    with pytest.raises(SparsityLeakError, match="PEFT must return the merged .* unchanged"):
        merge_adapter(peft, mask)
