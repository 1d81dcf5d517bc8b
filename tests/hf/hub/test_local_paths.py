"""Local paths are left out of what is shared: cards, the info and the configuration of a pushed ticket."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from small_task import Points, arguments, vit
from small_tickets import mask, ticket
from transformers import ViTForImageClassification

from hf_lottery import Snapshot, SparseTrainer, Ticket
from hf_lottery.hf import SparseModel
from hf_lottery.hf.hub.card import merge_cards
from hf_lottery.hf.hub.local_paths import LOCAL, is_local_path, without_local_paths
from hf_lottery.hf.hub.reference import Reference

PATHS = [
    "/home/me/secret", "~/secret", "~me/secret", "./secret", "../secret", "C:\\Users\\me\\secret", "D:/secret",
    "\\\\server\\secret", ".\\secret", "file:///home/me/secret",
]  # fmt: skip
OTHERS = [
    "user/name", "digits", "https://hf.co/me/x", "hf://me/x", "s3://b/k", "step:2", "2:4", "global", "and/or",
    "encoder\\.layer\\.\\d+\\.", "\\.bias$", "a C: b", "1/2 of it", "model.norm/weight",  ".\\d+", "(.\\d+)",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_known_by_their_beginning(path):
    assert is_local_path(path) and without_local_paths([{"x": (path, 3, None)}]) == [{"x": (LOCAL, 3, None)}]
    told = without_local_paths(f"train.py --data={path} --seed 3, in '{path}'.")
    assert "secret" not in told and told == f"train.py --data={LOCAL} --seed 3, in '{LOCAL}'."


@pytest.mark.parametrize("text", OTHERS)
def test_other_texts_stay(text):
    assert without_local_paths({"key": [text], "told": f"see {text} there"}) == {
        "key": [text],
        "told": f"see {text} there",
    }


def test_a_relative_path_is_known_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user/name").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    assert without_local_paths(["user/name", "user/other", "mine"]) == [LOCAL, "user/other", "mine"]
    named = {"dataset_name": "mine", "model_name_or_path": "user/other", "score": "mine", "train_file": "data\\x\\y"}
    assert without_local_paths(named) == {**named, "dataset_name": LOCAL, "train_file": LOCAL}


@pytest.mark.parametrize("path", [PATHS[0], PATHS[5], "runs/base/secret"])
def test_no_local_path_is_pushed(hub, path, tmp_path):
    settings = {"task": "image-classification", "dataset_name": path, "model_name_or_path": path, "output_dir": path}
    history = [{"level": 0, "sparsity": 0.0, "metrics": {"eval_accuracy": 0.9}}]
    info = {"settings": settings, "history": history, "base_model": {"id": path, "revision": None}, "parents": [path]}
    config = vit(0).config
    config.backbone_file, config._name_or_path = "/home/me/secret", path
    found = replace(ticket(), info=info, model_config=config)
    found.push_to_hub("alice/t")
    files = hub.repos["alice/t"].files()
    assert not [name for name, content in files.items() if b"secret" in content]
    pulled = Ticket.from_pretrained("alice/t")
    assert pulled.info["settings"]["task"] == "image-classification" and pulled.info["settings"]["output_dir"] == LOCAL
    assert (pulled.mask, pulled.model_config.hidden_size) == (found.mask, 16)
    data = ModelCard(files["README.md"].decode()).data.to_dict()
    assert not {"base_model", "model-index"} & data.keys() and data["model_name"] == "alice/t"
    # On this machine the ticket keeps what it knows; its card may be uploaded.
    found.save_pretrained(tmp_path / "t")
    assert json.loads((tmp_path / "t/mask_config.json").read_text())["info"] == info
    assert "secret" not in (tmp_path / "t/README.md").read_text() and "secret" not in found.card("/home/me/secret/t")
    assert config.backbone_file == "/home/me/secret"


def test_a_repository_stays_in_the_card(hub):
    settings = {"task": "image-classification", "dataset_name": "org/birds"}
    history = [{"level": 0, "sparsity": 0.0, "metrics": {"eval_accuracy": 0.9}}]
    for base in ("org/base", {"id": "org/base", "revision": None}):
        card = ModelCard(
            replace(ticket(), info={"settings": settings, "history": history, "base_model": base}).card("a/b")
        )
        assert (card.data.base_model, card.data.eval_results[0].dataset_name) == ("org/base", "org/birds")


@pytest.mark.parametrize("repo_id", ["/home/me/base", "./base", "C:\\base", "a/b/c"])
def test_a_reference_names_a_repository(repo_id):
    with pytest.raises(ValueError, match="repo_id must be the id of a repository on the Hub"):
        Reference("pretrained", "0", repo_id=repo_id, revision="main")


@pytest.mark.parametrize(
    "repo_id", ["./x", "../x", "~/x", "/x", "C:\\x", "a/b/c", "me/", "me/a--b", "me/a..b", "x.git", "", "me/x y"]
)
def test_a_path_is_no_repository_to_push_to(hub, repo_id):
    with pytest.raises(ValueError, match=r"repo_id must be the id of a repository on the Hub, .*Use save_pretrained"):
        mask().push_to_hub(repo_id)
    assert not hub.log


def test_a_name_alone_is_in_the_namespace_of_the_user(hub):
    assert "alice/alone" in mask().push_to_hub("alone") and "alice/alone" in hub.repos
    assert 'from_pretrained("alice/alone")' in hub.repos["alice/alone"].files()["README.md"].decode()


def test_the_card_of_a_loop_of_ones_own():
    bare = replace(ticket(), info={})
    assert "## How it was found\n\nThis was not recorded" in bare.card("a/b")
    assert "call `ticket.apply_(model)`" in bare.card("a/b") and "`SparseTrainer(..., mask" in bare.card("a/b")
    own = replace(ticket(), info={"level": 3, "notes": ["Adam, | 5 epochs"]}).card("a/b")
    assert "| known | value" in own and "Adam, \\| 5 epochs" in own and "not recorded" not in own


@pytest.mark.parametrize("metadata", ["a: [", "- a\n- b", "just text"])
def test_a_card_whose_metadata_cannot_be_read_is_not_overwritten(metadata):
    with pytest.raises(ValueError, match=r"the metadata of README.md must be .*Mend it there"):
        merge_cards(f"---\n{metadata}\n---\nMine.\n", ticket().card("a/b"))


def test_a_card_keeps_every_line_of_a_person():
    theirs = (
        "---\r\nlicense: mit\r\nmodel-index: mine\r\ntags: birds\r\nodd: {a: [1]}\r\n---\r\nMine.\r\n---\r\nstill\r\n"
    )
    merged = merge_cards(theirs, replace(ticket(), info={}).card("a/b"))
    assert merged.endswith("---\nMine.\r\n---\r\nstill\r\n")
    assert "license: mit" in merged and "model-index: mine" in merged and "odd:" in merged and "- birds" in merged
    assert merge_cards("Only text.\n", ticket().card("a/b")).endswith("---\nOnly text.\n")


@pytest.mark.parametrize("base", ["/home/me/secret", "gone/where/secret", "gone/secret", "secret", "C:\\secret"])
def test_the_card_of_a_trainer_names_no_path(hub, tmp_path, base):
    vit(0).push_to_hub("alice/base")
    model = ViTForImageClassification.from_pretrained("alice/base")
    for name in (base, "alice/base"):
        model.config._name_or_path = name
        SparseTrainer(model, arguments(tmp_path), train_dataset=Points()).create_model_card(license="mit")
        card = (tmp_path / "README.md").read_text()
        assert "secret" not in card and ("base_model: alice/base" in card) == (name == "alice/base")


@pytest.mark.parametrize("base", ["runs/secret", "secret"])
def test_a_folder_that_is_gone_is_no_base_model(hub, tmp_path, base):
    model = vit(0)
    model.config._name_or_path = base
    made = Ticket.of(model, mask(), Snapshot.capture(model))
    assert "base_model" not in made.info and "secret" not in made.card("a/b")
    pruned = mask()
    pruned.apply_(model)
    assert "secret" not in SparseModel.of(model, pruned).card("a/b")


def test_the_network_of_an_option_is_a_folder():
    command = ["hf-lottery", "train", "--init", "checkpoint:runs/secret", "--signs=checkpoint:secret"]
    told = without_local_paths({"command": command, "text": f"see {' '.join(command)}."})
    assert told["command"][3:] == [f"checkpoint:{LOCAL}", f"--signs=checkpoint:{LOCAL}"]
    assert "secret" not in told["text"] and without_local_paths("checkpoint: a") == "checkpoint: a"
