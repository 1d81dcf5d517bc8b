"""Transfer: download files from the Hub, all of one commit, and push files in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionResolutionError,
)
from transformers import PreTrainedConfig

from ...storage.hub_mixin import REPO_ID
from ...version import __version__
from .card import merge_cards, other_card

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def fetch(
    repo_id: str,
    files: Sequence[str],
    *,
    optional: Sequence[str] = (),
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Download files of a repository, all of one commit, and return the folder that holds them.

    Args:
        repo_id: The repository.
        files: Names of the files that must exist.
        optional: Names of files that may be missing.
        revision: Branch, tag or commit. It is resolved to a commit once, before the first file.
        subfolder: Folder in the repository.
        token: As in huggingface_hub: a token, True for the stored one, False for none.
        cache_dir: Where downloads are kept.
        local_files_only: Whether to look only at what was downloaded before.
        force_download: Whether to download what was downloaded before again.

    Raises:
        FileNotFoundError: The repository, revision or file does not exist, or this token may not see it.
    """
    api = _api(token)
    common: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    try:
        commit = api.resolve_revision(repo_id, revision=revision, **common)
    except (HfHubHTTPError, RevisionResolutionError, OfflineModeIsEnabled) as error:
        raise _unreadable(repo_id, revision, error) from error

    def download(name: str) -> str:
        return hf_hub_download(
            repo_id, name, subfolder=subfolder or None, revision=commit.resolved,
            force_download=force_download, library_name="hf_lottery", library_version=__version__, **common,
        )  # fmt: skip

    for name in optional:
        try:
            download(name)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            continue
    path = ""
    for name in files:
        try:
            path = download(name)
        except (EntryNotFoundError, LocalEntryNotFoundError) as error:
            place = f"{repo_id}/{subfolder}" if subfolder else repo_id
            raise FileNotFoundError(
                f"{place} must hold {name} at {revision or 'main'}: {_first_line(error)}"
            ) from error
    return Path(path).parent


def fetch_model(repo_id: str, *, subfolder: str = "", **where: Any) -> Path:
    """Download the configuration and safetensors of a model, all of one commit; see :func:`fetch`."""
    revision, token = where.pop("revision", None), where.pop("token", None)
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    patterns = [f"{prefix}*.safetensors", f"{prefix}*.json"]
    try:
        path = _api(token).snapshot_download(repo_id, revision=revision, allow_patterns=patterns, **where)
    except (HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError, OfflineModeIsEnabled) as error:
        raise _unreadable(repo_id, revision, error) from error
    return Path(path) / subfolder


def push(
    thing: Any,
    repo_id: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    tag: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Push the files that ``thing.save_pretrained`` writes, in one commit; see :meth:`HubMixin.push_to_hub`."""
    api = _api(token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    head = api.model_info(repo_id, revision=revision).sha
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "saved"
        thing.save_pretrained(folder)
        if pickles := [file.name for file in folder.iterdir() if file.suffix in _PICKLES]:
            raise ValueError(f"a pushed folder must not hold a pickle; received {pickles[0]}.")
        source = f'{repo_id}", subfolder="{subfolder}' if subfolder else repo_id
        card = thing.card(source) if hasattr(thing, "card") else other_card(thing, source)
        (folder / "README.md").write_text(_merged(card, api, repo_id, head, subfolder))
        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        done = api.create_commit(
            repo_id,
            [CommitOperationAdd(f"{prefix}{file.name}", file) for file in sorted(folder.iterdir())],
            commit_message=commit_message or f"Push {type(thing).__name__} with hf_lottery {__version__}",
            revision=revision,
            parent_commit=head,  # refused (412) if somebody else pushed since the card was read
            create_pr=create_pr,
        )
    if tag is not None and not create_pr:
        if any(ref.name == tag for ref in api.list_repo_refs(repo_id).tags):
            api.delete_tag(repo_id, tag=tag)
        api.create_tag(repo_id, tag=tag, revision=done.oid)
    return done.pr_url or done.commit_url


def base_model(config: PreTrainedConfig, *, token: str | bool | None = None) -> dict[str, str | None] | None:
    """Return the repository that a model's configuration names and its commit in the cache; None without one."""
    name = getattr(config, "_name_or_path", None)
    if not name or Path(name).exists() or not REPO_ID.fullmatch(name):
        return None
    try:
        commit = _api(token).resolve_revision(name, local_files_only=True).resolved
    except (HfHubHTTPError, RevisionResolutionError, OfflineModeIsEnabled):
        commit = None
    return {"id": name, "revision": commit}


def _merged(card: str, api: HfApi, repo_id: str, commit: str | None, subfolder: str) -> str:
    """The new card, with the text that a person wrote in the card of the repository."""
    try:
        old = api.hf_hub_download(repo_id, "README.md", subfolder=subfolder or None, revision=commit)
    except EntryNotFoundError:
        return card
    return merge_cards(Path(old).read_text(), card)


def _api(token: str | bool | None) -> HfApi:
    return HfApi(token=token, library_name="hf_lottery", library_version=__version__)


def _unreadable(repo_id: str, revision: str | None, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"the source must be a folder or a repository on the Hub that you may read; received {repo_id!r} at "
        f"{revision or 'main'}: {_first_line(error)}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
