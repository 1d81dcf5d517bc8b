"""The Hub of the tests answers the real client as the Hub does, and its faults are felt."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_client import FILES, MASK, SHA256, failing, pull, push
from huggingface_hub import (
    _CACHED_NO_EXIST,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    create_branch,
    create_commit,
    create_repo,
    create_tag,
    delete_branch,
    delete_tag,
    file_exists,
    get_paths_info,
    list_repo_commits,
    list_repo_files,
    list_repo_refs,
    list_repo_tree,
    metadata_update,
    model_info,
    repo_exists,
    revision_exists,
    snapshot_download,
    try_to_load_from_cache,
    upload_folder,
    whoami,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


def test_who_am_i(hub):
    assert (whoami()["name"], whoami()["orgs"][0]["name"], whoami("hf_bob")["name"]) == ("alice", "lottery-org", "bob")
    with failing(401, "Invalid user token"):
        whoami("hf_mallory")
    create_repo("ticket")
    with failing(401, "Invalid credentials"):
        model_info("alice/ticket", token="hf_mallory")


def test_create_a_repository(hub):
    url = create_repo("ticket")
    assert (url, url.repo_id) == (f"{hub.endpoint}/alice/ticket", "alice/ticket")
    assert list_repo_files("alice/ticket") == [".gitattributes"]
    assert create_repo("alice/ticket", exist_ok=True) == url
    with failing(409, "already created"):
        create_repo("alice/ticket")
    assert create_repo("lottery-org/ticket").repo_id == "lottery-org/ticket"
    with failing(403, "rights"):
        create_repo("bob/ticket")
    with failing(401):
        create_repo("other", token=False)
    assert sorted(hub.repos) == ["alice/ticket", "lottery-org/ticket"]


def test_a_push_is_one_commit_of_regular_and_large_files(hub, repo):
    files = hub.repos[repo].files()
    assert {path: files[path] for path in FILES} == FILES
    assert [line.split()[2] for line in hub.requests("POST .*/commit/")] == ["200"]
    assert sorted(line.split()[1] for line in hub.requests("PUT .* 200")) == sorted(
        f"/lfs/{repo}/{hashlib.sha256(content).hexdigest()}" for content in (MASK, MASK[::-1])
    )
    assert len(hub.requests("/verify 200")) == 2


def test_a_push_of_the_same_files_makes_no_commit(hub, repo, tmp_path):
    hub.log.clear()
    commit = upload_folder(repo_id=repo, folder_path=tmp_path)
    assert commit.oid == model_info(repo).sha
    assert not hub.requests("/commit/|PUT") and hub.requests("/preupload/")


def test_large_are_files_by_name_content_or_size_and_they_are_stored_once(hub, repo):
    for path, content, uploads in (
        ("copy.bin", MASK, 0),
        ("other.bin", b"text", 1),
        ("mask.dat", b"\0", 1),
        ("log.txt", b"text" * (10 * 2**18 + 1), 1),
        ("notes.txt", b"text", 0),
    ):
        hub.log.clear()
        push(repo, content, path)
        assert (path, len(hub.requests("PUT .* 200"))) == (path, uploads)
        assert bool(hub.requests("/objects/batch 200")) == (path != "notes.txt")
        assert pull(repo, path) == content


def test_an_upload_that_arrives_changed_or_never_is_refused(hub, repo):
    changed = CommitOperationAdd("new.safetensors", b"one")
    changed.upload_info.sha256 = hashlib.sha256(b"two").digest()
    with pytest.raises(RuntimeError, match="new.safetensors"):
        create_commit(repo, [changed], commit_message="More")
    assert hub.requests("PUT .* 400")
    hub.fail("PUT /lfs", 200)
    with pytest.raises(RuntimeError, match="new.safetensors"):
        push(repo, b"one", "new.safetensors")
    assert hub.requests("/verify 422")
    forgotten = CommitOperationAdd("new.safetensors", b"one")
    forgotten._upload_mode, forgotten._is_uploaded = "lfs", True
    with failing(400, "does not exist"):
        create_commit(repo, [forgotten], commit_message="More")
    assert "new.safetensors" not in hub.repos[repo].files()


def test_delete_files(hub, repo):
    create_commit(repo, [CommitOperationDelete("mask.safetensors")], commit_message="Less")
    assert set(FILES) - set(list_repo_files(repo)) == {"mask.safetensors"}
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        create_commit(repo, [CommitOperationDelete("mask.safetensors")], commit_message="Less")


def test_listings(hub, repo):
    sizes = {path: len(content) for path, content in FILES.items()}
    everything = {entry.path: entry for entry in list_repo_tree(repo, recursive=True)}
    assert set(everything) - {".gitattributes"} == {*FILES, "seed-0"}
    mask, config = everything["mask.safetensors"], everything["mask_config.json"]
    assert (mask.size, mask.lfs.size, mask.lfs.sha256, config.lfs) == (len(MASK), len(MASK), SHA256, None)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{SHA256}\nsize {len(MASK)}\n"
    assert config.blob_id == hashlib.sha1(b"blob 2\0{}").hexdigest()
    assert mask.blob_id == hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()
    assert {entry.path for entry in list_repo_tree(repo)} - {".gitattributes"} == {*sizes, "seed-0"} - {
        "seed-0/mask.safetensors"
    }
    assert [entry.path for entry in list_repo_tree(repo, "seed-0")] == ["seed-0/mask.safetensors"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(list_repo_tree(repo, "seed-1"))
    found = get_paths_info(repo, ["mask_config.json", "seed-0", "absent"])
    assert [type(entry).__name__ for entry in found] == ["RepoFile", "RepoFolder"]
    info = model_info(repo, files_metadata=True)
    assert {file.rfilename: file.size for file in info.siblings if file.rfilename in FILES} == sizes
    assert {file.rfilename: file.lfs and file.lfs.sha256 for file in info.siblings}["mask.safetensors"] == SHA256
    assert {file.size for file in model_info(repo).siblings} == {None}
    push(repo, b"more", commit_message="Notes", commit_description="On the mask")
    commits = list_repo_commits(repo)
    assert [commit.title for commit in commits] == ["Notes", "The mask", "initial commit"]
    assert [commit.message for commit in commits] == ["On the mask", "", ""]
    assert [commit.authors for commit in commits] == [["alice"]] * 3
    assert commits[0].commit_id == model_info(repo).sha


def test_pull_by_revision_and_subfolder(hub, repo):
    old = model_info(repo).sha
    create_tag(repo, tag="v1")
    create_branch(repo, branch="tries/1")
    push(repo, b'{"new": 1}', "mask_config.json")
    push(repo, b'{"try": 1}', "mask_config.json", revision="tries/1")
    contents = {None: b'{"new": 1}', "main": b'{"new": 1}', "v1": b"{}", old: b"{}", "tries/1": b'{"try": 1}'}
    assert {revision: pull(repo, "mask_config.json", revision=revision) for revision in contents} == contents
    assert pull(repo, "mask.safetensors", subfolder="seed-0") == MASK[::-1]
    folder = Path(snapshot_download(repo, revision="v1", allow_patterns="*.safetensors"))
    assert sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.s*")) == [
        "mask.safetensors",
        "seed-0/mask.safetensors",
    ]
    assert HfApi().resolve_revision(repo, revision="v1").resolved == folder.name == old
    hub.log.clear()
    assert pull(repo, "mask.safetensors", revision=old) == MASK
    assert hub.log == []


def test_what_is_missing(hub, repo):
    with pytest.raises(RemoteEntryNotFoundError):
        pull(repo, "adapter.safetensors")
    assert try_to_load_from_cache(repo, "adapter.safetensors") is _CACHED_NO_EXIST
    assert file_exists(repo, "mask.safetensors") and not file_exists(repo, "adapter.safetensors")
    with pytest.raises(RevisionNotFoundError):
        pull(repo, "mask.safetensors", revision="v9")
    assert revision_exists(repo, "main") and not revision_exists(repo, "v9")
    for missing in ("alice/absent", "gpt2"):
        for token, status in ((None, 404), (False, 401)):
            with failing(status, error=RepositoryNotFoundError):
                pull(missing, "mask.safetensors", token=token)


def test_a_private_repository(hub):
    repo = create_repo("secret", private=True).repo_id
    push(repo, MASK, "mask.safetensors")
    for token, status in (("hf_bob", 404), (False, 401)):
        with failing(status, error=RepositoryNotFoundError):
            pull(repo, "mask.safetensors", token=token)
        with failing(status, error=RepositoryNotFoundError):
            model_info(repo, token=token)
        with failing(status, error=RepositoryNotFoundError):
            push(repo, b"bob was here", token=token, create_pr=True)
    assert pull(repo, "mask.safetensors") == MASK
    assert model_info(repo).private and not repo_exists(repo, token="hf_bob")
    assert not model_info(create_repo("open").repo_id, token="hf_bob").private


def test_only_the_owner_pushes(hub, repo, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    before = hub.repos[repo].files()
    with failing(403, "create_pr=1"):
        push(repo, b"bob was here")
    with failing(403):
        create_branch(repo, branch="bob")
    with pytest.raises(RepositoryNotFoundError):
        push(repo, b"nobody was here", token=False)
    assert hub.repos[repo].files() == before and len(hub.repos[repo].refs) == 1


def test_a_pull_request(hub, repo):
    head = model_info(repo).sha
    commit = push(repo, b"better", "mask.safetensors", create_pr=True, token="hf_bob")
    assert (commit.pr_revision, commit.pr_url) == ("refs/pr/1", f"{hub.endpoint}/{repo}/discussions/1")
    assert pull(repo, "mask.safetensors", revision="refs/pr/1") == b"better"
    assert pull(repo, "mask.safetensors") == MASK and model_info(repo).sha == head
    refs = list_repo_refs(repo, include_pull_requests=True)
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", commit.oid)]
    push(repo, b"more", revision="refs/pr/1")
    assert hub.repos[repo].files("refs/pr/1")["notes.txt"] == b"more"
    push(repo, b"new")
    assert push(repo, b"{ }", "mask_config.json", create_pr=True, parent_commit=head).pr_num == 2
    assert "notes.txt" not in hub.repos[repo].files("refs/pr/2")


def test_branches_and_tags(hub, repo):
    first = model_info(repo).sha
    push(repo, b"new")
    create_branch(repo, branch="old", revision=first)
    create_tag(repo, tag="v1", revision="old")
    refs = list_repo_refs(repo)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": model_info(repo).sha, "old": first}
    assert [(ref.ref, ref.target_commit) for ref in refs.tags] == [("refs/tags/v1", first)]
    create_branch(repo, branch="old", exist_ok=True)
    with failing(409):
        create_branch(repo, branch="old")
    with failing(409):
        create_tag(repo, tag="v1")
    with failing(400, "branch"):
        push(repo, b"to a tag", revision="v1")
    with pytest.raises(RevisionNotFoundError):
        push(repo, b"to nowhere", revision="v2")
    delete_branch(repo, branch="old")
    delete_tag(repo, tag="v1")
    assert [*hub.repos[repo].refs] == ["refs/heads/main"]
    with pytest.raises(RevisionNotFoundError):
        delete_tag(repo, tag="v1")


def test_a_commit_on_a_head_that_has_moved(hub, repo):
    head = model_info(repo).sha
    hub.before("POST .*/commit/main", lambda: push(repo, b"theirs"))
    with failing(412, "A commit has happened since"):
        push(repo, b"ours", parent_commit=head)
    assert hub.repos[repo].files()["notes.txt"] == b"theirs"
    push(repo, b"ours", parent_commit=model_info(repo).sha)
    assert hub.repos[repo].files()["notes.txt"] == b"ours"


def test_of_many_pushes_on_one_head_one_wins(hub, repo):
    head = model_info(repo).sha

    def attempt(k: int) -> int:
        try:
            push(repo, b"%d" % k, parent_commit=head)
        except HfHubHTTPError as error:
            return error.response.status_code
        return k

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(attempt, range(4)))
    winner = min(results)
    assert sorted(results) == [winner, 412, 412, 412]
    assert hub.repos[repo].files()["notes.txt"] == b"%d" % winner


def test_model_cards(hub, repo):
    card = ModelCard.load(repo)
    assert (card.data.license, card.text) == ("mit", "# A ticket\n")
    metadata_update(repo, {"tags": ["lottery-ticket"]})
    assert hub.repos[repo].files()["README.md"] == b"---\nlicense: mit\ntags:\n- lottery-ticket\n---\n# A ticket\n"
    card.text = "# Another\n"
    card.push_to_hub(repo)
    assert b"# Another" in hub.repos[repo].files()["README.md"]
    with pytest.raises(ValueError, match="no end"):
        push(repo, b"---\nlicense: mit\n", "README.md")
    with pytest.warns(UserWarning, match="missing yaml metadata"):
        push(repo, b"# No metadata\n", "README.md")


def test_the_log_tells_who_asked_with_what(hub, repo):
    HfApi(library_name="hf_lottery", library_version="1.0", token="hf_bob").model_info(repo)
    assert hub.requests(rf"^GET /api/models/{repo} 200 bob hf_lottery/1\.0")
    model_info(repo, token=False)
    assert hub.requests(rf"^GET /api/models/{repo} 200 None ")


def test_another_process_reaches_the_hub(hub, repo, tmp_path):
    code = f"import huggingface_hub as h; print(h.whoami()['name'], h.hf_hub_download({repo!r}, 'mask.safetensors'))"
    for env, user in ((os.environ, "alice"), ({**os.environ, **hub.env(tmp_path / "home", "hf_bob")}, "bob")):
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        name, path = run.stdout.split()
        assert (name, Path(path).read_bytes()) == (user, MASK)
    assert Path(path).is_relative_to(tmp_path / "home")


def test_without_the_fixture_the_client_is_offline():
    assert constants.ENDPOINT == HfApi().endpoint != "" and "127.0.0.1" not in constants.ENDPOINT
    assert constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"
    for call in (model_info, list_repo_commits):
        with pytest.raises(OfflineModeIsEnabled):
            call("alice/ticket")
