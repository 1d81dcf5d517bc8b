import json
from pathlib import Path

import pytest
import torch
from sealed_files import sealed
from small_task import vit
from torch import nn
from transformers import ViTConfig

from hf_lottery import Mask, MaskFileError, MaskMismatchError, Snapshot, Ticket, prunable


def model(seed=0, size=16):
    return vit(seed, hidden_size=size, num_labels=3)


@pytest.fixture
def ticket():
    source = model()
    mask = Mask({name: torch.rand(p.shape) > 0.5 for name, p in prunable(source).items()})
    info = {
        "level": 2,
        "architecture": "ViTForImageClassification",
        "settings": {"sparsity": 0.5, "rewind": "step:5"},
        "history": [{"level": 0, "sparsity": 0.0, "metrics": {"eval_accuracy": 0.875, "eval_loss": 0.5}}],
    }
    return Ticket(mask, Snapshot.capture(source, step=5), info, source.config)


def test_round_trip_without_a_pickle(ticket, tmp_path):
    ticket.save_pretrained(tmp_path / "t")
    assert sorted(file.name for file in (tmp_path / "t").iterdir()) == [
        "README.md", "config.json", "mask.safetensors", "mask_config.json", "model.safetensors", "rewind.safetensors",
    ]  # fmt: skip
    loaded = Ticket.from_pretrained(tmp_path / "t")
    assert loaded.mask == ticket.mask and loaded.info == ticket.info
    assert loaded.start.step == 5 and loaded.start.sha256() == ticket.start.sha256()
    assert (type(loaded.model_config), loaded.model_config.hidden_size) == (ViTConfig, 16)
    assert Mask.from_pretrained(tmp_path / "t") == ticket.mask


def test_a_ticket_of_a_plain_module_says_less(tmp_path):
    plain = nn.Linear(2, 2)
    ticket = Ticket(Mask({"weight": torch.ones(2, 2).tril() > 0}), Snapshot.capture(plain))
    ticket.save_pretrained(tmp_path / "t")
    loaded = Ticket.from_pretrained(tmp_path / "t")
    assert (loaded.mask, loaded.info, loaded.model_config) == (ticket.mask, {}, None)
    card = (tmp_path / "t/README.md").read_text()
    assert card.startswith("---\nlibrary_name: hf_lottery\n") and "# A lottery ticket\n\n3 of 4 prunable" in card
    assert "| `weight`  | 2x2   | 25.00%   |" in card


def test_the_config_with_the_checksums_is_written_last(ticket, tmp_path, monkeypatch):
    def fail_for_the_config(source, target):
        if Path(target).name == "mask_config.json":
            raise OSError("disk full")
        Path(source).rename(target)

    monkeypatch.setattr("os.replace", fail_for_the_config)
    with pytest.raises(OSError, match="disk full"):
        ticket.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "README.md", "config.json", "mask.safetensors", "model.safetensors", "rewind.safetensors",
    ]  # fmt: skip


def test_apply_puts_a_model_where_the_ticket_starts(ticket):
    other = model(seed=9)
    ticket.apply_(other)
    expected = model()
    ticket.mask.apply_(expected)
    assert Snapshot.capture(other).sha256() == Snapshot.capture(expected).sha256()


def test_apply_to_another_model_changes_nothing(ticket):
    other = model(size=32)
    before = Snapshot.capture(other).sha256()
    with pytest.raises(MaskMismatchError):
        ticket.apply_(other)
    assert Snapshot.capture(other).sha256() == before
    wrong = Ticket(Mask({"x": torch.ones(2, dtype=torch.bool)}), ticket.start)
    other = model(seed=9)
    before = Snapshot.capture(other).sha256()
    with pytest.raises(MaskMismatchError, match="'x' must name a parameter"):
        wrong.apply_(other)
    assert Snapshot.capture(other).sha256() == before


def test_the_card_says_what_it_is_and_what_it_is_not(ticket, tmp_path):
    ticket.save_pretrained(tmp_path / "t")
    card = (tmp_path / "t/README.md").read_text()
    assert "library_name: hf_lottery" in card and "- lottery-ticket" in card
    assert f"sparsity **{ticket.mask.sparsity:.2%}**" in card
    assert "| 0     | 0.00%    | 0.8750   | 0.5000 |" in card
    heads = [line for line in card.splitlines() if line.startswith("## ")]
    assert heads == ["## How good it is", "## How to load it", "## How it was found", "## Limits"]
    assert "# A lottery ticket of `ViTForImageClassification`\n" in card and "| rewind          | `step:5` |" in card
    assert all(f"| `{name}` " in card for name in ticket.mask)
    assert "not faster" in card


def test_a_card_that_a_person_wrote_stays(ticket, tmp_path):
    ticket.save_pretrained(tmp_path / "t")
    (tmp_path / "t/README.md").write_text("mine")
    ticket.save_pretrained(tmp_path / "t")
    assert (tmp_path / "t/README.md").read_text() == "mine"


def test_missing_truncated_and_mixed_files(ticket, tmp_path):
    ticket.save_pretrained(tmp_path / "t")
    rewind = tmp_path / "t/rewind.safetensors"
    whole = rewind.read_bytes()
    rewind.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MaskFileError, match="must have the sha256 that mask_config.json states.*truncated"):
        Ticket.from_pretrained(tmp_path / "t")
    Snapshot.capture(model(seed=3), step=5).save(rewind)
    with pytest.raises(MaskFileError, match="must have the sha256 that mask_config.json states.*from another save"):
        Ticket.from_pretrained(tmp_path / "t")
    rewind.unlink()
    with pytest.raises(FileNotFoundError, match="rewind weights must be in"):
        Ticket.from_pretrained(tmp_path / "t")


def test_mask_and_weights_of_different_models(ticket, tmp_path):
    ticket.save_pretrained(tmp_path / "t")
    Snapshot.capture(model(size=32)).save(tmp_path / "t/rewind.safetensors")
    config = json.loads((tmp_path / "t/mask_config.json").read_text())
    del config["rewind"]
    config["format_version"] = 1  # since version 2, weights that the config does not state are not taken
    for unknown in ({"rewind": {}}, {}):
        (tmp_path / "t/mask_config.json").write_bytes(sealed(config | unknown))
        with pytest.raises(MaskFileError, match="must fit each other"):
            Ticket.from_pretrained(tmp_path / "t")


def test_an_error_half_way_leaves_no_ticket(ticket, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hf_lottery.hf.hub.ticket.stage_mask", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        ticket.save_pretrained(tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_info_of_ones_own_comes_back_and_shadows_nothing(ticket, tmp_path):
    own = Ticket(ticket.mask, ticket.start, {"rewind": "mine", "sha256": "mine", "notes": [1, 2]}, None)
    own.save_pretrained(tmp_path / "t")
    assert Ticket.from_pretrained(tmp_path / "t").info == own.info
    Snapshot.capture(model(seed=3), step=5).save(tmp_path / "t/rewind.safetensors")
    with pytest.raises(MaskFileError, match="must have the sha256"):
        Ticket.from_pretrained(tmp_path / "t")


def test_a_config_that_lay_there_before_is_not_the_tickets(ticket, tmp_path):
    ticket.save_pretrained(tmp_path / "t")
    Ticket(ticket.mask, ticket.start).save_pretrained(tmp_path / "t")
    assert (tmp_path / "t/config.json").exists() and Ticket.from_pretrained(tmp_path / "t").model_config is None


def test_a_mask_that_does_not_fit_its_weights_is_not_saved(ticket, tmp_path):
    with pytest.raises(MaskMismatchError):
        Ticket(Mask({"x": torch.ones(2, dtype=torch.bool)}), ticket.start).save_pretrained(tmp_path / "t")
    assert not list(tmp_path.iterdir())
