"""Faults that a test asks of its Hub are felt by the real client."""

import time
from pathlib import Path

import pytest
from hub_client import MASK, failing, pull, push
from huggingface_hub import (
    constants,
    create_tag,
    get_paths_info,
)
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
)


def test_a_request_fails(hub, repo):
    hub.fail("HEAD .*/resolve/main/mask.safetensors", 503, times=2)
    assert pull(repo, "mask.safetensors") == MASK
    assert [line.split()[2] for line in hub.requests("HEAD")] == ["503", "503", "200"]
    hub.fail("GET .*/resolve/", 500)
    with failing(500, "asked for this error"):
        pull(repo, "mask_config.json")
    hub.fail("HEAD", times=20)
    start = time.monotonic()
    with pytest.raises(LocalEntryNotFoundError):
        pull(repo, "README.md")
    assert time.monotonic() - start < 5
    assert pull(repo, "mask.safetensors") == MASK  # from the cache


def test_a_commit_fails(hub, repo):
    before = hub.repos[repo].files()
    hub.fail("/commit/", 500)
    with failing(500):
        push(repo, b"lost")
    assert len(hub.requests("/commit/.* 500")) == 1
    assert hub.repos[repo].files() == before
    hub.fail("PUT /lfs", 503)
    push(repo, b"large", "large.bin")
    assert hub.repos[repo].files()["large.bin"] == b"large"


def test_a_download_is_cut_and_resumed(hub, repo, monkeypatch):
    hub.drop("GET .*/resolve/", times=2)
    assert pull(repo, "mask.safetensors") == MASK
    assert [line.split()[2] for line in hub.requests("GET .*/mask.safetensors")] == ["200", "200", "200"]
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.drop("GET .*/resolve/")
    assert pull(repo, "seed-0/mask.safetensors") == MASK[::-1]
    assert [line.split()[2] for line in hub.requests("GET .*/seed-0/mask.safetensors")] == ["200", "206"]


def test_a_download_is_cut_for_ever(hub, repo):
    hub.drop("GET .*/resolve/", times=20)
    with pytest.raises(Exception, match="peer closed connection"):
        pull(repo, "mask.safetensors")
    assert not any(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))
    hub.faults.clear()
    hub.drop("HEAD")
    with pytest.raises(Exception, match="disconnected"):
        pull(repo, "mask.safetensors")
    assert pull(repo, "mask.safetensors") == MASK


def test_a_commit_whose_answer_is_lost(hub, repo):
    hub.drop("/commit/")
    with pytest.raises(Exception, match="peer closed connection"):
        push(repo, b"arrived")
    assert hub.repos[repo].files()["notes.txt"] == b"arrived"


def test_tampered_files(hub, repo):
    create_tag(repo, tag="true")
    push(repo, b"new")
    hub.tamper(repo, "mask.safetensors", lambda content: b"!" + content[1:])
    hub.tamper(repo, "mask_config.json", lambda content: content[:-1])
    hub.tamper(repo, "seed-0/mask.safetensors", lambda content: content[:-1], consistent=False)
    with pytest.raises(OSError, match="should be of size 2048 but has size 2047"):
        pull(repo, "seed-0/mask.safetensors")
    assert pull(repo, "mask.safetensors") == b"!" + MASK[1:]
    assert pull(repo, "mask_config.json") == b"{"
    assert get_paths_info(repo, "mask_config.json")[0].size == 2
    assert pull(repo, "mask.safetensors", revision="true", force_download=True) == MASK
