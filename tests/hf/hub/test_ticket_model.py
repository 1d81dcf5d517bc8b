"""A ticket is enough: it builds its model where it starts."""

import random

import numpy as np
import pytest
import torch
from small_task import Net, net, vit
from transformers import BertConfig, BertForSequenceClassification, BertModel, T5Config, T5Model, set_seed

from hf_lottery import Mask, MaskMismatchError, RewindMismatchError, Snapshot, Ticket, prunable
from hf_lottery.hf.hub.reference import Reference

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}


def bert(kind=BertForSequenceClassification, **changes):
    return kind(BertConfig(**SMALL, pad_token_id=0, **changes))


def half(model):
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower():
            parameter.data = parameter.data.bfloat16()
    return model


MODELS = {
    "vit": lambda: vit(3),
    "a head": lambda: bert(num_labels=5),
    "no head": lambda: bert(BertModel),
    "tied": lambda: T5Model(T5Config(d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, vocab_size=30)),
    "mixed precision": lambda: half(bert()),
}


def ticket_of(model, start=None, **info):
    generator = torch.Generator().manual_seed(0)
    mask = Mask({n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in prunable(model).items()})
    info = {"architecture": type(model).__name__, **info}
    return Ticket(mask, start or Snapshot.capture(model, step=4), info, getattr(model, "config", None))


@pytest.mark.parametrize("name", MODELS)
def test_a_ticket_builds_its_model_where_it_starts(tmp_path, name):
    model = MODELS[name]()
    ticket_of(model).save_pretrained(tmp_path)
    ticket = Ticket.from_pretrained(tmp_path)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    built = ticket.build_model()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    ticket.apply_(model)
    assert type(built) is type(model) and not built.training
    assert Snapshot.capture(built).sha256() == Snapshot.capture(model).sha256()
    assert ticket.mask.sparsity == pytest.approx(Mask.from_model(prunable(built)).sparsity)


@pytest.mark.parametrize("seed", [7, 8])
def test_a_seed_draws_the_weights_again_and_the_hash_proves_them(seed):
    set_seed(7)
    model = vit(7)
    set_seed(7)
    model = type(model)(model.config)
    proof = Reference.to(Snapshot.capture(model), model, 7)
    ticket = ticket_of(model, Reference("seed", proof.sha256, seed=seed))
    if seed == 8:
        with pytest.raises(RewindMismatchError):
            ticket.build_model()
        return
    built = ticket.build_model()
    ticket.mask.apply_(model)
    assert Snapshot.capture(built).sha256() == Snapshot.capture(model).sha256()


def test_a_reference_is_to_a_commit_that_gives_these_weights(hub):
    bert(BertModel).push_to_hub("alice/base")
    first = hub.repos["alice/base"].refs["refs/heads/main"]
    half(bert(BertModel)).push_to_hub("alice/base")
    new, old = (BertModel.from_pretrained("alice/base", revision=revision) for revision in (None, first))
    assert Reference.to(Snapshot.capture(new), new, 0).revision == hub.repos["alice/base"].refs["refs/heads/main"]
    for other in (old, BertForSequenceClassification.from_pretrained("alice/base")):  # the other has a new head
        with pytest.raises(ValueError, match="must be those of a commit on the Hub.*Store them by value"):
            Reference.to(Snapshot.capture(other), other, 1)


def test_a_model_is_no_start_and_has_no_place_for_the_mask():
    model = bert()
    mask = ticket_of(model).mask
    with pytest.raises(TypeError, match="received Mask and BertForSequenceClassification. Snapshot.capture"):
        Ticket.of(model, mask, model)
    with pytest.raises(TypeError, match="received Snapshot and Mask"):
        Ticket.of(model, Snapshot.capture(model), mask)


def test_what_does_not_name_a_known_model():
    with pytest.raises(ValueError, match=r"received architecture='Net' and model_config=NoneType.*ticket.apply_"):
        ticket_of(net(), architecture=Net.__name__).build_model()
    for name in ("LlamaModel", "Trainer", "os", "__builtins__", "BertConfig"):
        with pytest.raises(ValueError, match=rf"for a BertConfig; received '{name}'"):
            ticket_of(bert(), architecture=name).build_model()


def test_a_class_that_computes_from_other_weights_is_refused():
    with pytest.raises(MaskMismatchError):
        ticket_of(bert(), architecture="BertModel").build_model()


@pytest.mark.parametrize(("stored", "trained"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_weights_on_the_hub_get_the_configuration_and_precision_of_the_ticket(tmp_path, monkeypatch, stored, trained):
    bert(BertModel).to(stored).save_pretrained(tmp_path / "me/base")
    monkeypatch.chdir(tmp_path)  # transformers takes a folder for a repository
    model = BertModel.from_pretrained("me/base", hidden_dropout_prob=0.4, dtype=trained)
    start = Reference("pretrained", Snapshot.capture(model).sha256(), "me/base", "main")
    ticket_of(model, start).save_pretrained(tmp_path / "ticket")
    built = Ticket.from_pretrained(tmp_path / "ticket").build_model()
    assert built.config.hidden_dropout_prob == 0.4 and built.dtype == trained


def test_a_head_that_the_hub_does_not_hold_draws_no_numbers(tmp_path, monkeypatch):
    bert(BertModel).save_pretrained(tmp_path / "me/base")
    monkeypatch.chdir(tmp_path)
    ticket = ticket_of(bert(), Reference("pretrained", "0" * 64, "me/base", "main"))
    before = torch.get_rng_state()
    with pytest.raises(RewindMismatchError):
        ticket.build_model()
    assert torch.equal(torch.get_rng_state(), before)
