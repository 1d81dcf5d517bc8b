"""The card of a ticket: its code runs as it stands, it says how good the ticket is, and it names no local path."""

import re

import pytest
import torch
from small_task import net, vit
from small_tickets import mask, ticket
from transformers import BertTokenizerFast, ViTForImageClassification, set_seed

from hf_lottery import Mask, Snapshot, Ticket, prunable
from hf_lottery.hf.hub.about import changed_settings, command_line, surroundings
from hf_lottery.hf.hub.reference import Reference
from hf_lottery.hf.tasks.data import DataArguments
from hf_lottery.hf.trainers.arguments import LotteryArguments

HISTORY = [
    {"level": 0, "sparsity": 0.0, "metrics": {"eval_accuracy": 0.9}},
    {"level": 1, "sparsity": 0.2, "metrics": {"eval_accuracy": 0.875}},
]
SETTINGS = {"task": "image-classification", "dataset_name": "digits", "seed": 3, "max_length": None, "augment": True}


def code_of(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def run(card):
    """Run the code of a card in its order, and return the models that it makes."""
    models, values = [], {}
    for block in code_of(card):
        exec(block, values)
        models.append(values.get("model"))
    return models


def by_seed():
    config = vit(0).config
    set_seed(7)
    model = ViTForImageClassification(config)
    return Ticket.of(model, mask(), Reference.to(Snapshot.capture(model), model, 7))


def test_the_code_of_a_ticket_by_value_runs(tmp_path, monkeypatch):
    ticket().save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    loaded, built = run((tmp_path / "README.md").read_text())
    assert type(loaded) is ViTForImageClassification
    assert Mask.from_model(prunable(loaded)) == mask()
    assert Snapshot.capture(loaded).sha256() == Snapshot.capture(built).sha256()


def test_the_code_of_a_ticket_by_seed_runs(tmp_path, monkeypatch):
    by_seed().save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "README.md").read_text()
    (built,) = run(card)
    assert Mask.from_model(prunable(built)) == mask()
    assert "`build_model()` draws them again from the seed" in card
    assert "AutoModelForImageClassification" not in card


def test_the_code_of_a_ticket_by_repository_runs(hub, tmp_path):
    base = vit(3)
    base.push_to_hub("alice/base")
    base = ViTForImageClassification.from_pretrained("alice/base")
    Ticket.of(base, mask(), Reference.to(Snapshot.capture(base), base, 0)).push_to_hub("alice/t")
    card = hub.repos["alice/t"].files("main")["README.md"].decode()
    (built,) = run(card)
    assert Mask.from_model(prunable(built)) == mask()
    assert "`build_model()` downloads them from the Hub" in card and "base_model: alice/base" in card


def test_the_code_of_a_network_that_only_the_user_knows_runs(tmp_path, monkeypatch):
    plain = net()
    Ticket.of(plain, Mask.dense(prunable(plain)), Snapshot.capture(plain)).save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "README.md").read_text()
    run(card)
    assert "Build the network yourself, and call `ticket.apply_(model)`" in card and "build_model" not in card


def test_the_card_of_a_network_of_the_papers_registers_its_class(tmp_path, monkeypatch):
    from hf_lottery.hf.tasks.paper_networks import LeNetConfig, LeNetForImageClassification

    model = LeNetForImageClassification(LeNetConfig(hidden_sizes=[8], image_size=4, num_labels=2))
    kept = Mask({name: torch.ones_like(p).tril() > 0 for name, p in prunable(model).items()})
    Ticket.of(model, kept, Snapshot.capture(model)).save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "import hf_lottery.hf.tasks.paper_networks  # registers the class" in card
    loaded, _ = run(card)
    assert Mask.from_model(prunable(loaded)) == kept


@pytest.mark.parametrize("compared", [False, True])
def test_it_says_how_good_the_ticket_is_and_over_how_many_seeds(compared):
    found = {"header": ["at 20 %", "accuracy"], "rows": [["dense", "90.0 ± 1.0"]], "text": "Over 5 trainings of each."}
    card = ticket(history=HISTORY, settings=SETTINGS, **({"comparison": found} if compared else {})).card("me/x")
    assert ("| dense   | 90.0 ± 1.0 |" in card, "Over 5 trainings of each." in card) == (compared, compared)
    assert ("one seed (3), one training of each" in card) == (not compared)
    assert ("| dense, level 0       | 0.00%    | 0.9000   |" in card) == (not compared)
    assert "one seed (3)" in card
    assert "This was not measured." in ticket().card("me/x")


def test_it_shows_the_changed_settings_alone():
    about = {
        "changed": ["augment", "seed"], "command": ["find_ticket.py", "--seed", "3"], "date": "2026-01-02",
        "versions": {"torch": "2.6"}, "hardware": "CPU, 2 cores, x86_64",
    }  # fmt: skip
    card = ticket(settings=SETTINGS, about=about, note="mine").card("me/x")
    assert "| augment         | `True` |" in card and "max_length" not in card
    for shown in ("find_ticket.py --seed 3", "2026-01-02", "torch 2.6", "CPU, 2 cores, x86_64", "mine"):
        assert f"`{shown}`" in card
    assert "hf-lottery train --ticket me/x --init seed:7" in card
    assert "hf-lottery train" not in ticket(settings={**SETTINGS, "dataset_name": "/data/x"}).card("me/x")


def test_no_local_path_is_in_a_card(tmp_path):
    settings = {**SETTINGS, "dataset_name": str(tmp_path), "config_name": "/home/me/config.json"}
    about = {"command": ["find_ticket.py", "--dataset_name", str(tmp_path)], "changed": list(settings)}
    card = ticket(settings=settings, about=about, history=HISTORY).card(str(tmp_path))
    assert str(tmp_path) not in card and "/home" not in card and "config_name" not in card


def test_a_person_keeps_the_text_around_the_library_part(tmp_path):
    ticket().save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    card.write_text(card.read_text() + "\nOnly for birds.\n")
    ticket(note="new").save_pretrained(tmp_path)
    assert "Only for birds." in card.read_text() and "| note  | `new` |" in card.read_text()


def test_a_damaged_letter_in_a_card_ends_nothing(tmp_path):
    ticket().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_bytes()
    (tmp_path / "README.md").write_bytes(card.replace(b"---\n\n", b"---\n\nMy own w\xf0rds.\n\n", 1))
    ticket().save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.replace("My own w\N{REPLACEMENT CHARACTER}rds.\n\n", "") == card.decode()


def test_what_is_known_of_a_run():
    settings = {
        "seed": 3,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "dataset_name": "digits",
        "augment": True,
    }
    assert changed_settings(settings, LotteryArguments, DataArguments) == ["seed", "augment"]
    shown = command_line(["/usr/bin/hf-lottery", "find", "--hub_token=hf_abc", "--seed=3", "--hub_token", "hf_abc"])
    assert shown == ["hf-lottery", "find", "--hub_token", "...", "--seed", "3", "--hub_token", "..."]
    assert surroundings(processes=2)["hardware"].startswith("2 processes, each ")


@pytest.mark.parametrize(
    "info",
    [
        {"comparison": {"header": ["a"], "rows": [["b", "c"]], "text": "t"}},
        {"comparison": {"header": ["a"], "rows": [], "text": 3}},
        {"about": {"command": "text"}},
        {"about": []},
        {"defined_in": 3},
    ],
)
def test_an_info_that_the_card_could_not_show_is_refused(info):
    with pytest.raises(ValueError, match=r"in (about of )?(the|a ticket's) info"):
        ticket(**info)


def test_the_tokenizer_is_loaded_too(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good"]))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    model = vit(0)
    made = Ticket.of(model, mask(), Snapshot.capture(model), processing=tokenizer)
    made.save_pretrained(tmp_path / "t")
    monkeypatch.chdir(tmp_path / "t")
    values = {}
    exec(code_of((tmp_path / "t/README.md").read_text())[0], values)
    assert values["tokenizer"]("good")["input_ids"] == tokenizer("good")["input_ids"]
    assert Ticket.from_pretrained(tmp_path / "t").processing == made.processing != {}
