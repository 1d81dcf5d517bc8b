"""Push to a Hub and pull from it, with the real client."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants, hf_hub_download
from small_task import Points, arguments, net, vit
from small_tickets import mask, permutation, ticket
from transformers import ViTForImageClassification

from hf_lottery import (
    Mask,
    MaskFileError,
    Permutation,
    SignedMask,
    SparseTrainer,
    SparsityCallback,
    Ticket,
    prunable,
)
from hf_lottery.hf.hub.transfer import base_model
from hf_lottery.storage import HubError


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
    saved = {"architectures": ["ViTForImageClassification"], "dtype": "float32"}  # as transformers saves a model
    assert found.model_config.to_dict() == {**ticket().model_config.to_dict(), **saved}
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
    with pytest.raises(HubError, match="Nothing was pushed. Somebody else has pushed in the meantime") as refused:
        mask(3).push_to_hub("alice/m")
    assert refused.value.status == 412
    assert Mask.from_pretrained("alice/m") == mask(2)


@pytest.mark.parametrize("broken", [r"PUT /lfs", r"POST .*/commit/main"])
def test_an_interrupted_push_leaves_the_ticket_before(hub, broken):
    ticket(1).push_to_hub("alice/t")
    hub.fail(broken, status=500, times=60)
    with pytest.raises(HubError):
        ticket(2).push_to_hub("alice/t")
    hub.faults.clear()
    assert Ticket.from_pretrained("alice/t", force_download=True).mask == ticket(1).mask


def test_an_interrupted_save_leaves_the_ticket_before(tmp_path, monkeypatch):
    ticket(1).save_pretrained(tmp_path / "t")
    monkeypatch.setattr(
        "hf_lottery.hf.hub.ticket.stage_mask", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    )
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
    with pytest.raises(HubError, match="status 403") as refused:
        mask().push_to_hub("alice/secret", token="hf_bob")
    assert refused.value.status == 403


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


def test_requests_name_the_library(hub):
    mask().push_to_hub("alice/m")
    Mask.from_pretrained("alice/m")
    assert hub.requests(r"GET .*mask\.safetensors.*hf_lottery/")


def test_the_base_model_and_its_commit_are_recorded(hub, tmp_path):
    vit(0).push_to_hub("alice/base")
    model = ViTForImageClassification.from_pretrained("alice/base")
    found = base_model(model.config)
    assert found == {"id": "alice/base", "revision": HfApi().model_info("alice/base").sha}
    by_commit = vit(0).config
    for name, revision in (("alice/base", found["revision"]), ("runs/gone", None)):
        by_commit._name_or_path = name
        assert base_model(by_commit) == ({"id": name, "revision": revision} if revision else None)
    model.save_pretrained(tmp_path)
    assert base_model(ViTForImageClassification.from_pretrained(tmp_path).config) is None
    assert base_model(vit(0).config) is None


def test_a_base_model_of_which_the_cache_knows_no_branch(hub):
    vit(0).push_to_hub("alice/base")
    model = ViTForImageClassification.from_pretrained("alice/base", revision=HfApi().model_info("alice/base").sha)
    shutil.rmtree(Path(constants.HF_HUB_CACHE) / "models--alice--base/refs")
    assert base_model(model.config) == {"id": "alice/base", "revision": None}


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
