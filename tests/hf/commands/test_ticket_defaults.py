"""train needs no option of network or data that its ticket knows. The command line wins."""

import json

import pytest
from recipe_runs import BERT, ROOT, SMALL, text_model

from hf_lottery import Ticket
from hf_lottery.hf.commands import find_ticket, train_ticket
from hf_lottery.hf.commands.ticket_defaults import ticket_defaults
from hf_lottery.hf.hub.local_paths import LOCAL

BRIEF = ["--num_train_epochs", 1, "--per_device_train_batch_size", 8]


def loss_of(folder):
    return json.loads((folder / "eval_results.json").read_text())["eval_loss"]


@pytest.fixture
def text_search(run, tmp_path):
    """The settings of a search with a small BERT, and its ticket."""
    model, texts = text_model(tmp_path, BERT)
    settings = [
        "--task", "text-classification", "--config_name", model, "--dataset_name", texts, "--max_length", 4, *BRIEF,
    ]  # fmt: skip
    run(
        find_ticket, *settings, "--sparsity", 0.3, "--pruning_fraction", 0.3, "--rewind", "init", "--output_dir",
        tmp_path / "run",
    )  # fmt: skip
    return settings, tmp_path / "run/ticket", texts


def test_another_seed_is_trained_without_an_option_that_the_ticket_knows(run, digits_search, tmp_path):
    ticket, schedule = digits_search[0] / "ticket", tmp_path / "schedule.yaml"
    text = (ROOT / "recipes/digits/imp.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("dataset", "task", "config_name", "output"))]
    schedule.write_text("\n".join(lines))
    brief = ["--config", schedule, *SMALL[SMALL.index("--num_train_epochs") :]]
    brief = [part for at, part in enumerate(brief) if "--max_train_samples" not in brief[max(0, at - 1) : at + 1]]
    seed = ["--ticket", ticket, "--init", "seed:7", "--output_dir"]
    run(train_ticket, *SMALL, *seed, tmp_path / "told")
    run(train_ticket, *brief, *seed, tmp_path / "known")
    assert loss_of(tmp_path / "known") == loss_of(tmp_path / "told")


def test_a_pushed_ticket_asks_for_data_in_a_folder_and_knows_the_rest(run, hub, text_search, tmp_path, capsys):
    settings, ticket, texts = text_search
    Ticket.from_pretrained(ticket).push_to_hub("alice/t")
    seed = [*BRIEF, "--ticket", "alice/t", "--init", "seed:7", "--output_dir"]
    with pytest.raises(SystemExit):
        run(train_ticket, *seed, tmp_path / "asked")
    asked = "dataset_name must be given, as the ticket was found on data in a folder of another machine"
    assert asked in capsys.readouterr().err
    run(train_ticket, *seed, tmp_path / "known", "--dataset_name", texts)
    run(train_ticket, *settings, "--ticket", ticket, "--init", "seed:7", "--output_dir", tmp_path / "told")
    assert loss_of(tmp_path / "known") == loss_of(tmp_path / "told")
    known = ticket_defaults("alice/t", ())
    assert (known["task"], known["max_length"], known["dataset_name"]) == ("text-classification", 4, LOCAL)
    assert known["config_name"] == known["processing_name"] == "alice/t"


def test_the_ticket_knows_classes_tokenizer_and_how_it_was_found(text_search, tmp_path):
    ticket = Ticket.from_pretrained(text_search[1])
    assert ticket.model_config.id2label == {0: "0", 1: "1"}
    assert {"tokenizer.json", "tokenizer_config.json"} <= ticket.processing.keys()
    about = ticket.info["about"]
    assert about["command"][:2] == ["hf-lottery", "find"]
    assert {"task", "max_length", "sparsity"} <= set(about["changed"])
    assert not {"split_seed", "learning_rate", "augment"} & set(about["changed"])
    assert str(tmp_path) not in (text_search[1] / "README.md").read_text()


@pytest.mark.parametrize("given", [(), ("dataset_name",), ("augment",)])
def test_data_that_the_user_names_bring_their_own_options(digits_search, given):
    known = ticket_defaults(str(digits_search[0] / "ticket"), given)
    assert known["task"] == "image-classification"
    assert ("max_train_samples" in known) == ("dataset_name" in known) == ("dataset_name" not in given)


def test_what_a_stranger_wrote_as_a_setting_is_no_list(digits_search, tmp_path):
    ticket = Ticket.from_pretrained(digits_search[0] / "ticket")
    ticket.info["settings"] |= {"max_train_samples": [1], "task": {"a": 1}}
    ticket.save_pretrained(tmp_path)
    assert not {"max_train_samples", "task"} & ticket_defaults(str(tmp_path), ()).keys()


@pytest.mark.slow
def test_the_comparison_is_in_the_ticket_and_its_card(run, tmp_path):
    settings = [*SMALL, "--sparsity", 0.3, "--pruning_fraction", 0.3, "--rewind", "init"]
    run(find_ticket, *settings, "--compare", 2, "--output_dir", tmp_path / "run")
    found = Ticket.from_pretrained(tmp_path / "run/ticket").info["comparison"]
    assert [row[0] for row in found["rows"]] == ["dense", "ticket", "random mask", "re-initialised"]
    assert {name: len(values) for name, values in found["values"].items()} == dict.fromkeys(found["values"], 2)
    card = (tmp_path / "run/ticket/README.md").read_text()
    good = card.split("## How good it is")[1].split("## How to load it")[0]
    assert "| re-initialised      |" in good and "over 2 trainings of each" in good and "one seed (" in good
