"""A fine-tuning stored as the difference to its base: small, exact, and applied to that base alone."""

import copy
import json
from typing import cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, set_seed

from hf_lottery import Mask, MaskFileError, MaskMismatchError, RewindMismatchError, Snapshot, Ticket, prunable
from hf_lottery.hf.adapter import merge_adapter
from hf_lottery.hf.commands.train_ticket import start_weights
from hf_lottery.hf.hub.difference import DIFFERENCE_NAME, Difference
from hf_lottery.hf.tasks.data import Data
from hf_lottery.hf.tasks.models import ModelArguments
from hf_lottery.storage.json_files import seal_json

pytestmark = [
    pytest.mark.filterwarnings("ignore:the mask dropped .* of the norm:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # PEFT asks for it
]
QUERY = "model.layers.0.self_attn.q_proj.weight"
SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def llama(seed=0, *, tied=False):
    set_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval()


def mask_of(model, density=0.3):
    generator = torch.Generator().manual_seed(1)
    return Mask({n: torch.rand(p.shape, generator=generator) < density for n, p in prunable(model).items()})


@torch.no_grad()
def tuned(base, mask, **added):
    """A copy of a model under the mask, with numbers added to some tensors."""
    model = copy.deepcopy(base)
    for name, number in added.items():
        model.get_parameter(name).add_(number)
    mask.apply_(model)
    return model


def rows(model, name, count):
    """1 in the first rows of a weight, and 0 in the others."""
    added = torch.zeros_like(model.get_parameter(name))
    added[:count] = 1
    return added


def hash_of(model):
    return Snapshot.capture(model).sha256()


def saved(folder, model, mask, difference, **info):
    Ticket.of(model, mask, difference, info=info).save_pretrained(folder)
    return Ticket.from_pretrained(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_becomes_the_fine_tuned_model_bit_for_bit(tmp_path, tied, dtype):
    base = llama(tied=tied).to(dtype)
    mask, embedding = mask_of(base), "model.embed_tokens.weight"
    model = tuned(base, mask, **{QUERY: 1.0, embedding: rows(base, embedding, 3), "model.norm.weight": 0.5})
    ticket = saved(tmp_path, model, mask, Difference.between(base, model, mask, step=7))
    assert set(ticket.start.changes) == {QUERY, embedding, "model.norm.weight"} and ticket.start.step == 7
    assert len(ticket.start.changes[embedding].values) == 3 * 16
    sparse = copy.deepcopy(base)
    mask.apply_(sparse)
    for start in (copy.deepcopy(base), sparse, copy.deepcopy(model)):  # dense, under the mask, and once more
        ticket.apply_(start)
        assert hash_of(start) == hash_of(model)


def test_only_kept_weights_that_changed_are_stored(tmp_path):
    base = llama()
    mask = mask_of(base, 0.1)
    model = tuned(base, mask, **{QUERY: 1.0})
    ticket = saved(tmp_path, model, mask, Difference.between(base, model, mask))
    assert len(ticket.start.changes[QUERY].values) == int(mask[QUERY].sum()) < 0.2 * 256
    stated = json.loads((tmp_path / "mask_config.json").read_text())["rewind"]["changes"]
    assert stated == {QUERY: {"shape": [16, 16], "encoding": "kept"}}
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "rewind.safetensors").exists()


def test_a_model_that_was_trained_in_place_is_not_its_own_base():
    base = llama()
    mask = mask_of(base)
    mask.apply_(base)
    before = Snapshot.capture(base)
    merged = merge_adapter(get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)), mask)
    for thing in (base, torch.nn.DataParallel(base)):
        with pytest.raises(ValueError, match="the base must be another model.*work in place. Load the base again"):
            Difference.between(thing, merged, mask)
    assert Difference.between(before, merged, mask).changes.keys() == {QUERY}


def test_an_adapter_must_be_merged_before():
    base = llama()
    mask = mask_of(base)
    mask.apply_(base)
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ValueError, match=r"adapters merged; received one with .*lora_A.*merge_adapter\(model, mask"):
        Difference.between(base, adapted, mask)
    with pytest.warns(UserWarning, match="frozen"):
        dense = adapted.merge_and_unload()
        prunable(dense)
    with pytest.raises(ValueError, match=rf"zero where the mask prunes; received \d+ other weights in '{QUERY}'"):
        Difference.between(base, dense, mask)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (lambda: llama(1), RewindMismatchError, r"the weights of the base .* received .*\. Load the base model in"),
        (lambda: llama().bfloat16(), MaskMismatchError, "received .* torch.float32 and .* torch.bfloat16"),
        (lambda: nn.Linear(2, 2), MaskMismatchError, "must name a parameter"),
    ],
)
@pytest.mark.filterwarnings("ignore:the ticket is for another model:UserWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_another_base_is_refused_and_not_changed(other, error, message, strict):
    base = llama()
    mask = mask_of(base)
    model = tuned(base, mask, **{QUERY: 1.0})
    ticket, wrong = Ticket(mask, Difference.between(Snapshot.capture(base), model, mask)), other()
    before = hash_of(wrong)
    with pytest.raises(error, match=message):
        ticket.apply_(wrong, strict=strict)
    assert hash_of(wrong) == before


def test_a_base_in_which_one_kept_weight_differs_is_refused_and_one_that_is_pruned_is_not():
    base = llama()
    mask = mask_of(base)
    model = tuned(base, mask, **{QUERY: 1.0})
    difference, key = Difference.between(base, model, mask), "model.layers.0.self_attn.k_proj.weight"
    for kept in (False, True):
        place = tuple((mask[key] == kept).nonzero()[0])
        other = llama()
        other.get_parameter(key).data[place] += 1
        if kept:
            with pytest.raises(RewindMismatchError):
                difference.restore_(other)
        else:
            difference.restore_(other)
            assert hash_of(other) == hash_of(model)


def test_a_head_that_is_new_in_every_base_is_stored_whole_and_the_hub_gives_the_rest(tmp_path, monkeypatch):
    """The head is drawn anew each time, so nothing of it may be taken from the base."""
    monkeypatch.chdir(tmp_path)  # transformers takes a folder for a repository
    config = BertConfig(**SIZES, pad_token_id=0)
    BertForSequenceClassification(config).bert.save_pretrained("me/base")
    base = BertForSequenceClassification.from_pretrained("me/base")
    one_stays = torch.ones_like(base.classifier.weight)
    one_stays[0, 0] = 0  # by chance, so that a part of the head would be taken from a base
    mask, head = mask_of(base), {"classifier.weight": one_stays, "classifier.bias": 1.0}
    model = tuned(base, mask, **head)
    named = {"base_model": {"id": "me/base", "revision": None}}
    ticket = saved(tmp_path / "ticket", model, mask, Difference.between(base, model, mask), **named)
    assert set(ticket.start.changes) == set(head)
    assert hash_of(ticket.build_model()) == hash_of(model)
    assert "model = ticket.build_model()" in ticket.card("me/x") and "changed in the base model" in ticket.card("me/x")
    started = start_weights("ticket", ticket, ModelArguments(task="text-classification"), cast(Data, None), 0)
    assert hash_of(started) == hash_of(ticket.build_model())
    unnamed = Ticket.of(model, mask, ticket.start, info={"base_model": None})
    with pytest.raises(ValueError, match=r"must name its base on the Hub.*ticket.apply_\(model\)"):
        unnamed.build_model()
    assert "ticket.build_model()" not in unnamed.card("me/x")


def test_it_is_pushed_and_pulled(hub):
    base = llama()
    mask = mask_of(base)
    model = tuned(base, mask, **{QUERY: 1.0})
    Ticket.of(model, mask, Difference.between(base, model, mask)).push_to_hub("alice/tuned")
    Ticket.from_pretrained("alice/tuned").apply_(base)
    assert hash_of(base) == hash_of(model)


def test_the_mask_of_a_ticket_is_that_of_its_difference():
    base = llama()
    mask = mask_of(base)
    with pytest.raises(ValueError, match="must be that of its difference; received another"):
        Ticket(mask_of(base, 0.5), Difference.between(base, tuned(base, mask), mask))


def other_shape(stated):
    stated["changes"][QUERY]["shape"] = [256]


def other_name(stated):
    stated["changes"]["model.norm.weight"] = stated["changes"].pop(QUERY)


def no_bits(stated):
    stated["changes"]["model.embed_tokens.weight"]["encoding"] = "kept"


def huge(stated):
    stated["changes"]["model.embed_tokens.weight"]["shape"] = [2**40, 16]


def unknown(stated):
    stated["changes"][QUERY]["encoding"] = "pickle"


def no_changes(stated):
    stated["changes"] = None


@pytest.mark.parametrize("harm", [other_shape, other_name, no_bits, huge, unknown, no_changes])
def test_a_config_that_does_not_fit_the_file_is_refused(tmp_path, harm):
    base = llama()
    mask, embedding = mask_of(base), "model.embed_tokens.weight"
    model = tuned(base, mask, **{QUERY: 1.0, embedding: rows(base, embedding, 3)})
    saved(tmp_path, model, mask, Difference.between(base, model, mask))
    config = json.loads((tmp_path / "mask_config.json").read_text())
    harm(config["rewind"])
    (tmp_path / "mask_config.json").write_bytes(seal_json(config, what="it"))
    with pytest.raises(
        MaskFileError,
        match="step, checksums and changes|of the change of|must hold exactly the changes|for each of its places|bits",
    ):
        Ticket.from_pretrained(tmp_path)


def test_a_file_that_is_damaged_or_gone_is_refused(tmp_path):
    base = llama()
    mask = mask_of(base)
    model = tuned(base, mask, **{QUERY: 1.0})
    saved(tmp_path, model, mask, Difference.between(base, model, mask))
    file = tmp_path / DIFFERENCE_NAME
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(MaskFileError, match="must have the sha256"):
        Ticket.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="must hold difference.safetensors"):
        Ticket.from_pretrained(tmp_path)
