"""Push to a Hub and pull from it, with the real client."""

import json
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from small_task import Points, arguments, net, vit
from transformers import ViTForImageClassification, set_seed

from hf_lottery import (
    LotteryTrainer,
    Mask,
    MaskFileError,
    MaskMismatchError,
    MaskSeries,
    Permutation,
    Reference,
    RewindMismatchError,
    SignedMask,
    Snapshot,
    SparseTrainer,
    SparsityCallback,
    Ticket,
    WinningSignTrainer,
    discover,
    prunable,
)
from hf_lottery.hf.hub.transfer import base_model


def mask(seed=0, keep=0.3):
    generator = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(p.shape, generator=generator) < keep for name, p in prunable(vit(0)).items()})


def ticket(seed=0, **info):
    model = vit(0)
    return Ticket(mask(seed), Snapshot.capture(model, 5), {"architecture": type(model).__name__, **info}, model.config)


def permutation():
    model = vit(0, hidden_dropout_prob=0.0)
    spec = discover(model, {"pixel_values": torch.randn(2, 1, 8, 8)})
    return spec.random(1), spec


def test_every_kind_comes_back_bit_for_bit(hub):
    signed = SignedMask.from_model(vit(3), mask())
    moved, spec = permutation()
    assert "alice/mask" in mask().push_to_hub("alice/mask")
    signed.push_to_hub("alice/signed")
    moved.push_to_hub("alice/moved")
    ticket().push_to_hub("alice/ticket")
    assert Mask.from_pretrained("alice/mask") == mask()
    assert SignedMask.from_pretrained("alice/signed") == signed
    assert Mask.from_pretrained("alice/signed") == mask()
    assert Permutation.from_pretrained("alice/moved", spec) == moved
    found = Ticket.from_pretrained("alice/ticket")
    assert (found.mask, found.info) == (mask(), ticket().info)
    assert found.start.sha256() == ticket().start.sha256()
    assert found.model_config.to_dict() == ticket().model_config.to_dict()
    for name in ("mask", "signed", "moved", "ticket"):
        files = hub.repos[f"alice/{name}"].files("main")
        assert not [file for file in files if file.endswith((".bin", ".pt", ".pkl"))]
        assert len(hub.repos[f"alice/{name}"].commits) <= 2  # the empty one, and ours


def test_revisions_tags_and_subfolders(hub):
    mask(1).push_to_hub("alice/m", tag="level-01")
    mask(2).push_to_hub("alice/m", tag="level-02")
    mask(3).push_to_hub("alice/m", revision="other")
    mask(4).push_to_hub("alice/m", subfolder="seed-4")
    mask(5).push_to_hub("alice/m", tag="level-01")  # the tag moves
    assert Mask.from_pretrained("alice/m", revision="level-01") == mask(5)
    assert Mask.from_pretrained("alice/m", revision="level-02") == mask(2)
    assert Mask.from_pretrained("alice/m", revision="other") == mask(3)
    assert Mask.from_pretrained("alice/m", subfolder="seed-4") == mask(4)
    assert Mask.from_pretrained("alice/m") == mask(5)
    card = hub.repos["alice/m"].files("main")["seed-4/README.md"].decode()
    assert 'Mask.from_pretrained("alice/m", subfolder="seed-4")' in card


def test_a_repository_id_works_wherever_a_mask_does(hub, tmp_path):
    held = Mask({name: torch.rand(p.shape) > 0.5 for name, p in prunable(net()).items()})
    held.push_to_hub("alice/small")
    ours = SparseTrainer(net(), arguments(tmp_path), mask="alice/small", train_dataset=Points())
    ours.train()
    assert Mask.from_model(prunable(ours.model)) == held


def test_all_files_are_of_one_commit(hub):
    ticket(1).push_to_hub("alice/t")
    first = ticket(1).mask
    # The moment the config of the first ticket was fetched, somebody pushes another.
    hub.before(r"GET .*mask\.safetensors", lambda: ticket(2).push_to_hub("alice/t"))
    assert Ticket.from_pretrained("alice/t").mask == first
    assert Ticket.from_pretrained("alice/t").mask == ticket(2).mask


def test_a_push_during_a_push_is_refused(hub):
    mask(1).push_to_hub("alice/m")
    hub.before(r"POST .*/commit/main", lambda: mask(2).push_to_hub("alice/m"))
    with pytest.raises(HfHubHTTPError) as refused:
        mask(3).push_to_hub("alice/m")
    assert refused.value.response.status_code == 412
    assert Mask.from_pretrained("alice/m") == mask(2)


@pytest.mark.parametrize("broken", [r"PUT /lfs", r"POST .*/commit/main"])
def test_an_interrupted_push_leaves_the_ticket_before(hub, broken):
    ticket(1).push_to_hub("alice/t")
    hub.fail(broken, status=500, times=60)
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        ticket(2).push_to_hub("alice/t")
    hub.faults.clear()
    assert Ticket.from_pretrained("alice/t", force_download=True).mask == ticket(1).mask


def test_an_interrupted_save_leaves_the_ticket_before(tmp_path, monkeypatch):
    ticket(1).save_pretrained(tmp_path / "t")
    monkeypatch.setattr("hf_lottery.hf.hub.ticket.stage_mask", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        ticket(2).save_pretrained(tmp_path / "t")
    assert Ticket.from_pretrained(tmp_path / "t").mask == ticket(1).mask


@pytest.mark.parametrize("change", [lambda data: data[:-7], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_truncated_and_tampered_downloads_are_noticed(hub, change):
    mask().push_to_hub("alice/m")
    hub.tamper("alice/m", "mask.safetensors", change)
    with pytest.raises(MaskFileError, match="must have the sha256 that mask_config.json states"):
        Mask.from_pretrained("alice/m")


def test_a_dropped_connection_is_taken_up_again(hub):
    mask().push_to_hub("alice/m")
    hub.drop(r"GET .*mask\.safetensors")
    assert Mask.from_pretrained("alice/m") == mask()


def test_private_repositories_and_strangers(hub, monkeypatch):
    mask().push_to_hub("alice/secret", private=True)
    for token in (False, "hf_bob"):
        with pytest.raises(
            FileNotFoundError, match="a repository on the Hub that you may read; received 'alice/secret'"
        ):
            Mask.from_pretrained("alice/secret", token=token)
    assert Mask.from_pretrained("alice/secret") == mask()
    with pytest.raises(HfHubHTTPError):
        mask().push_to_hub("alice/secret", token="hf_bob")


def test_what_is_not_there_is_named(hub):
    HfApi().create_repo("alice/empty")
    with pytest.raises(FileNotFoundError, match="alice/empty must hold mask_config.json at main"):
        Mask.from_pretrained("alice/empty")
    mask().push_to_hub("alice/m")
    with pytest.raises(FileNotFoundError, match="received 'alice/m' at level-09"):
        Mask.from_pretrained("alice/m", revision="level-09")
    with pytest.raises(FileNotFoundError, match="alice/m/seed-0 must hold"):
        Mask.from_pretrained("alice/m", subfolder="seed-0")
    with pytest.raises(FileNotFoundError, match="received 'alice/nothing'"):
        Mask.from_pretrained("alice/nothing")


def test_a_folder_is_no_repository(hub, tmp_path):
    mask().save_pretrained(tmp_path / "m")
    mask(1).save_pretrained(tmp_path / "m/seed-1")
    assert Mask.from_pretrained(tmp_path / "m", subfolder="seed-1") == mask(1)
    with pytest.raises(ValueError, match="revision must come with a repository on the Hub; received the folder"):
        Mask.from_pretrained(str(tmp_path / "m"), revision="main")
    with pytest.raises(FileNotFoundError, match="must be a folder or the id of a repository on the Hub; received '/no"):
        Mask.from_pretrained("/no/such/folder")
    assert not hub.log


def test_offline_from_the_cache(hub):
    mask().push_to_hub("alice/m")
    with pytest.raises(FileNotFoundError):
        Mask.from_pretrained("alice/m", local_files_only=True)
    Mask.from_pretrained("alice/m")
    before = len(hub.log)
    assert Mask.from_pretrained("alice/m", local_files_only=True) == mask()
    assert len(hub.log) == before


def test_a_pull_request(hub):
    mask(1).push_to_hub("alice/m")
    address = mask(2).push_to_hub("alice/m", create_pr=True, token="hf_bob")
    assert "discussions" in address or "pr" in address
    assert Mask.from_pretrained("alice/m") == mask(1)
    assert Mask.from_pretrained("alice/m", revision="refs/pr/1") == mask(2)


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
    assert "| 1     | 0.2000   | 0.8750" in card.text
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


def test_requests_name_the_library(hub):
    mask().push_to_hub("alice/m")
    Mask.from_pretrained("alice/m")
    assert hub.requests(r"GET .*mask\.safetensors.*hf_lottery/")


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
    (tmp_path / "mask_config.json").write_text(json.dumps(config))
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
    with pytest.warns(UserWarning, match="the ticket is of another model: .*classifier"):
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


def test_the_base_model_and_its_commit_are_recorded(hub, tmp_path):
    vit(0).push_to_hub("alice/base")
    model = ViTForImageClassification.from_pretrained("alice/base")
    found = base_model(model.config)
    assert found == {"id": "alice/base", "revision": HfApi().model_info("alice/base").sha}
    model.save_pretrained(tmp_path)
    assert base_model(ViTForImageClassification.from_pretrained(tmp_path).config) is None
    assert base_model(vit(0).config) is None


def test_two_threads_may_load_at_once(hub):
    mask().push_to_hub("alice/m")
    found = []
    threads = [threading.Thread(target=lambda: found.append(Mask.from_pretrained("alice/m"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [mask()] * 3


def test_a_config_that_the_hub_serves_is_plain_json(hub):
    mask().push_to_hub("alice/m")
    config = json.loads(Path(hf_hub_download("alice/m", "mask_config.json")).read_text())
    assert config["library_name"] == "hf_lottery"


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


def test_any_trainer_holds_a_mask_of_the_hub(hub, tmp_path):
    held = Mask({name: torch.rand(p.shape) > 0.5 for name, p in prunable(net()).items()})
    held.push_to_hub("alice/small")
    callback = SparsityCallback("alice/small")
    assert callback.mask == held


def test_a_mistyped_word_is_no_word_of_the_hub(hub, tmp_path):
    mask().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="received 'revison'. Did you mean revision?"):
        Mask.from_pretrained(tmp_path, revison="x")
    with pytest.raises(TypeError, match="received 'foo'"):
        Mask.from_checkpoint(tmp_path, foo=1)


def test_a_mask_is_no_ticket(tmp_path):
    SignedMask.from_model(vit(3), mask()).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="must have weights to start from; received .* a mask alone"):
        Ticket.from_pretrained(tmp_path)
