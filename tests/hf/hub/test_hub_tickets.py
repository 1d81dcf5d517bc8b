"""Tickets on the Hub: their cards, weights by reference, and searches that push."""

import json

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from sealed_files import sealed
from small_task import Points, arguments, net, vit
from small_tickets import mask, ticket
from transformers import ViTForImageClassification, set_seed

from hf_lottery import (
    LotteryTrainer,
    Mask,
    MaskFileError,
    MaskMismatchError,
    MaskSeries,
    RewindMismatchError,
    SignedMask,
    Snapshot,
    Ticket,
    WinningSignTrainer,
)
from hf_lottery.hf.hub.reference import Reference


def card_of(hub, name):
    return hub.repos[name].files("main")["README.md"].decode()


HISTORY = [
    {"level": 0, "sparsity": 0.0, "metrics": {"eval_accuracy": 0.9}},
    {"level": 1, "sparsity": 0.2, "metrics": {"eval_accuracy": 0.875}},
]


def test_the_card_says_what_a_reader_needs(hub):
    settings = {"task": "image-classification", "dataset_name": "digits", "seed": 3}
    base = {"id": "org/base", "revision": "a" * 40}
    ticket(history=HISTORY, settings=settings, base_model=base).push_to_hub("alice/t")
    card = ModelCard(card_of(hub, "alice/t"))
    data = card.data.to_dict()
    assert (data["library_name"], data["base_model"], data["base_model_relation"]) == (
        "hf_lottery",
        "org/base",
        "adapter",
    )
    assert {"lottery-ticket", "pruning"} <= set(data["tags"])
    result = data["model-index"][0]["results"][0]
    assert (result["dataset"]["name"], result["metrics"][0]["value"]) == ("digits", 0.875)
    assert 'Ticket.from_pretrained("alice/t")' in card.text
    assert "![accuracy against the fraction of weights that stays](accuracy.png)" in card.text
    assert hub.repos["alice/t"].files("main")["accuracy.png"].startswith(b"\x89PNG")
    assert "| 1     | 20.00%   | 0.8750" in card.text
    assert "`vit.layers.0" in card.text or "`vit.encoder" in card.text


def test_a_push_keeps_what_a_person_wrote(hub):
    ticket(history=HISTORY).push_to_hub("alice/t")
    text = card_of(hub, "alice/t").replace("tags:", "license: mit\ntags:", 1).replace("- pruning", "- pruning\n- mine")
    HfApi().upload_file(
        path_or_fileobj=(text + "\nOnly for birds.\n").encode(), path_in_repo="README.md", repo_id="alice/t"
    )
    changed = [*HISTORY, {"level": 2, "sparsity": 0.4, "metrics": {"eval_accuracy": 0.8125}}]
    ticket(history=changed).push_to_hub("alice/t")
    card = ModelCard(card_of(hub, "alice/t"))
    assert card.text.rstrip().endswith("Only for birds.")
    assert "0.8125" in card.text and card.text.count("# A lottery ticket") == 1
    assert card.data.license == "mit" and "mine" in card.data.tags and "pruning" in card.data.tags
    # A person who threw the library's part away keeps the whole text.
    HfApi().upload_file(
        path_or_fileobj=b"---\nlicense: mit\n---\nMine alone.\n", path_in_repo="README.md", repo_id="alice/t"
    )
    ticket().push_to_hub("alice/t")
    card = ModelCard(card_of(hub, "alice/t"))
    assert card.text.strip() == "Mine alone."
    assert card.data.library_name == "hf_lottery"


def test_weights_by_reference(hub, tmp_path):
    base = vit(0)
    base.push_to_hub("alice/base")
    commit = HfApi().model_info("alice/base").sha
    whole = Snapshot.capture(base)
    reference = Reference("pretrained", whole.sha256(), repo_id="alice/base", revision=commit)
    small = Ticket(mask(), reference, {}, base.config)
    small.push_to_hub("alice/t")
    assert "rewind.safetensors" not in hub.repos["alice/t"].files("main")
    found = Ticket.from_pretrained("alice/t")
    assert found.start == reference
    model = type(base).from_pretrained(found.start.repo_id, revision=found.start.revision)
    found.apply_(model)
    expected = vit(0)
    mask().apply_(expected)
    assert Snapshot.capture(model).sha256() == Snapshot.capture(expected).sha256()
    with pytest.raises(RewindMismatchError, match=r"Build it by from_pretrained\('alice/base', revision='"):
        found.apply_(vit(1))


def test_weights_by_seed(tmp_path):
    reference = Reference("seed", Snapshot.capture(vit(5)).sha256(), seed=5)
    Ticket(mask(), reference, {}, vit(5).config).save_pretrained(tmp_path / "t")
    found = Ticket.from_pretrained(tmp_path / "t")
    found.apply_(vit(5))
    with pytest.raises(RewindMismatchError, match=r"Build it by set_seed\(5\) and from_config"):
        found.apply_(vit(6))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "luck"}, "must be one of pretrained, seed; received 'luck'"),
        ({"kind": "seed"}, "must name a repo_id .* or a seed"),
        ({"kind": "pretrained", "seed": 3}, "must name a repo_id"),
        ({"kind": "seed", "seed": 3, "step": 5}, "must be to weights before training; received step 5"),
    ],
)
def test_references_that_name_nothing(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Reference(sha256="0", **values)
    Ticket(mask(), Reference("seed", "0", seed=1)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "mask_config.json").read_text())
    config["rewind"] = {"by": "reference", "sha256": "0", **values}
    (tmp_path / "mask_config.json").write_bytes(sealed(config))
    with pytest.raises(MaskFileError, match="rewind must be a reference to weights"):
        Ticket.from_pretrained(tmp_path)


def test_a_ticket_of_another_model_says_what_differs():
    found, other = ticket(base_model={"id": "org/base"}), vit(0, num_labels=7)
    other.config._name_or_path = "org/other"
    before = Snapshot.capture(other).sha256()
    differing = r"'classifier.bias' \[2\] torch.float32 in the ticket, \[7\] torch.float32 here"
    with pytest.raises(MaskMismatchError, match=differing):
        found.apply_(other)
    assert Snapshot.capture(other).sha256() == before
    assert any("base model 'org/base' in the ticket, 'org/other' here" in line for line in found.differences(other))
    with pytest.warns(UserWarning, match="the ticket is for another model: .*classifier"):
        found.apply_(other, strict=False)
    assert torch.equal(other.vit.layernorm.weight, vit(0).vit.layernorm.weight)
    assert Mask.from_model({name: other.get_parameter(name) for name in found.mask}) == found.mask


def test_a_search_pushes_every_level(hub, tmp_path):
    args = arguments(tmp_path, push_to_hub=True, hub_model_id="alice/found", hub_private_repo=True, sparsity=0.5)
    ours = LotteryTrainer(net(), args, train_dataset=Points(), eval_dataset=Points(20))
    ours.train()
    repo = hub.repos["alice/found"]
    assert repo.private
    assert sorted(repo.files("main")) == [
        ".gitattributes", "README.md", "mask.safetensors", "mask_config.json", "rewind.safetensors",
    ]  # fmt: skip
    for level in range(3):
        found = Ticket.from_pretrained("alice/found", revision=f"level-{level:02d}")
        assert found.mask == Mask.from_pretrained(tmp_path / f"level-{level:02d}")
        assert found.info["history"] == ours.history[: level + 1]
    assert Mask.from_pretrained("alice/found") == ours.mask


def search(folder, model, **changes):
    args = arguments(folder, rewind_by_reference=True, sparsity=0.5, save_strategy="no", **changes)
    ours = LotteryTrainer(model, args, train_dataset=Pictures())
    ours.train()
    return ours


class Pictures(Points):
    def __getitem__(self, i):
        return {"pixel_values": self.x[i][:, None, None].expand(6, 8, 8)[:1], "labels": int(self.labels[i]) % 2}


def test_a_search_that_stores_its_weights_by_reference(hub, tmp_path):
    config = vit(0).config
    set_seed(42)
    ours = search(tmp_path / "seed", ViTForImageClassification(config))
    assert ours.ticket.start == Reference("seed", ours.ticket.start.sha256, seed=42)
    assert not (tmp_path / "seed/ticket/rewind.safetensors").exists()
    vit(3).push_to_hub("alice/base")
    ours = search(tmp_path / "hub", ViTForImageClassification.from_pretrained("alice/base"), rewind="pretrained")
    assert (ours.ticket.start.kind, ours.ticket.start.repo_id) == ("pretrained", "alice/base")
    again = ViTForImageClassification.from_pretrained("alice/base", revision=ours.ticket.start.revision)
    Ticket.from_pretrained(tmp_path / "hub/ticket").apply_(again)
    with pytest.raises(ValueError, match="built right after set_seed\\(42\\); received others. Store them by value"):
        search(tmp_path / "other", vit(5))
    resumed = LotteryTrainer(
        vit(5), arguments(tmp_path / "other", sparsity=0.5, save_strategy="no"), train_dataset=Pictures()
    )
    resumed.train(resume_from_checkpoint=True)
    assert isinstance(resumed.ticket.start, Snapshot)
    with pytest.raises(
        ValueError, match="rewind_by_reference must come with rewind=init or pretrained; received step:2"
    ):
        arguments(tmp_path, rewind_by_reference=True, rewind="step:2")


def test_levels_of_a_ticket_are_in_one_file(hub, tmp_path):
    ours = LotteryTrainer(net(), arguments(tmp_path, sparsity=0.5), train_dataset=Points())
    ours.train()
    ours.ticket.push_to_hub("alice/found")
    for level in range(3):
        assert Mask.from_pretrained("alice/found", level=level) == Mask.from_pretrained(tmp_path / f"level-{level:02d}")
    assert MaskSeries.from_pretrained("alice/found") == Ticket.from_pretrained("alice/found").series
    with pytest.raises(ValueError, match="level must be a whole number from 0 to 2"):
        Mask.from_pretrained("alice/found", level=3)
    with pytest.raises(ValueError, match="must be the last of its series"):
        Ticket(~ours.mask, ours.ticket.start, series=ours.ticket.series)
    series = ours.ticket.series
    assert series is not None
    series.push_to_hub("alice/series")
    assert MaskSeries.from_pretrained("alice/series") == series


def test_a_search_for_signs_pushes_them_too(hub, tmp_path):
    args = arguments(tmp_path, push_to_hub=True, hub_model_id="alice/signs", sparsity=0.5)
    ours = WinningSignTrainer(net(), args, train_dataset=Points())
    ours.train()
    assert SignedMask.from_pretrained("alice/signs", subfolder="signed") == ours.signed
    assert Mask.from_pretrained("alice/signs") == ours.mask


def test_a_mask_is_no_ticket(tmp_path):
    SignedMask.from_model(vit(3), mask()).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="must have weights to start from; received .* only a mask"):
        Ticket.from_pretrained(tmp_path)
