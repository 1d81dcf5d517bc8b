"""A ticket keeps how its model generates texts: a chat model stops at the same tokens after it was saved and loaded."""

import pytest
from small_texts import llama, mask_of
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_lottery import MaskFileError, Snapshot, Ticket
from hf_lottery.hf.commands.train_ticket import start_weights
from hf_lottery.hf.hub.reference import Reference
from hf_lottery.hf.tasks.data import Data
from hf_lottery.hf.tasks.models import ModelArguments


def chat(**changes):
    model = llama()
    model.generation_config.update(eos_token_id=[1, 5], do_sample=True, temperature=0.6, top_p=0.9, **changes)
    return model


@pytest.mark.parametrize("kind", ["value", "seed", "hub"])
def test_a_ticket_keeps_how_its_model_generates(tmp_path, hub, kind):
    model = chat()
    if kind == "hub":
        llama().push_to_hub("alice/base")  # as the Hub has it, it stops elsewhere
        model = LlamaForCausalLM.from_pretrained("alice/base")
        model.generation_config = chat().generation_config
    start = Snapshot.capture(model)
    start = start if kind == "value" else Reference.to(start, model, 0)
    Ticket.of(model, mask_of(model), start).save_pretrained(tmp_path)
    ticket = Ticket.from_pretrained(tmp_path)
    found = [ticket.build_model().generation_config]
    if kind == "value":
        found.append(AutoModelForCausalLM.from_pretrained(tmp_path).generation_config)
    ticket.push_to_hub("alice/ticket")
    found.append(Ticket.from_pretrained("alice/ticket").build_model().generation_config)
    for config in found:
        assert (config.eos_token_id, config.temperature, config.top_p) == ([1, 5], 0.6, 0.9)


def test_a_generation_config_that_was_edited_or_lost_is_refused(tmp_path):
    model = chat()
    Ticket.of(model, mask_of(model), Snapshot.capture(model)).save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(path.read_text().replace("0.6", "0.7"))
    with pytest.raises(MaskFileError, match="generation_config.json must be as the ticket was saved"):
        Ticket.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="must hold generation_config.json"):
        Ticket.from_pretrained(tmp_path)


@pytest.mark.parametrize("init", ["ticket", "seed:7"])
def test_a_training_by_command_starts_with_it(tmp_path, init):
    model = chat()
    Ticket.of(model, mask_of(model), Snapshot.capture(model)).save_pretrained(tmp_path)
    ticket, network = Ticket.from_pretrained(tmp_path), ModelArguments(task="causal-lm", config_name=str(tmp_path))
    started = start_weights(init, ticket, network, Data(train=None, eval=None), 0)
    assert started.generation_config.eos_token_id == [1, 5]
