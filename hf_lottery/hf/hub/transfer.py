"""Transfer: download files from the Hub, all of one commit, and push files in one commit."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import (
    _CACHED_NO_EXIST,
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_cached_repo_tree,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import ModelInfo
from transformers import PreTrainedConfig

from ...storage.hub_mixin import REPO_ID, HubError, find_folder, is_repository
from ...version import __version__
from .card import merge_cards, other_card
from .errors import absence, first_line, hub_errors, lost_commit, origin
from .model_file import MODEL_NAME, is_stale, model_on_hub
from .processing import SUFFIXES

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def fetch(
    repo_id: str,
    files: Sequence[str],
    *,
    optional: Sequence[str] = (),
    further: Callable[[Path], Sequence[str]] | None = None,
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
        optional: Names of files that may be missing, if the Hub says so; an error of the Hub does not count.
        further: Given the folder with those files, names the others that they speak of, which must exist too.
        revision: Branch, tag or commit. It is resolved to a commit once, before the first file.
        subfolder: Folder in the repository.
        token: As in huggingface_hub: a token, True for the stored one, False for none.
        cache_dir: Where downloads are kept.
        local_files_only: Whether to look only at what was downloaded before.
        force_download: Whether to download what was downloaded before again.

    Raises:
        FileNotFoundError: The repository, revision or file does not exist, or this token may not see it.
        HubError: The Hub cannot be reached or refuses, and the files are not in the cache.
        ValueError: Both ``local_files_only`` and ``force_download`` are asked for.
    """
    if local_files_only and force_download:
        raise ValueError("local_files_only and force_download must not go together; received both. Leave one out.")
    api = _api(token)
    common: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    place = f"{repo_id}/{subfolder.strip('/')}" if subfolder else repo_id
    at = revision or "main"
    try:
        with hub_errors(f"read {repo_id} at {at}"):
            commit = api.resolve_revision(repo_id, revision=revision, **common).resolved
    except HubError as error:
        raise _unreadable(repo_id, at, error, local_files_only) from error

    def get(names: Sequence[str]) -> str:
        path = ""
        for name in names:
            found = _download(repo_id, name, subfolder or None, commit, force_download, common)
            if found is None and name not in optional:
                raise FileNotFoundError(f"{place} must hold {name} at {at}; received a repository without it.")
            path = found or path
        return path

    path = get([*optional, *files])
    if not path:
        raise FileNotFoundError(f"{place} must hold {' or '.join(optional)} at {at}; received a repository without.")
    folder = Path(path).parent
    if further is not None:
        get(further(folder))
    return folder


def fetch_model(repo_id: str, *, subfolder: str = "", **where: Any) -> Path:
    """Download configuration, safetensors and tokenizer of a model, all of one commit; see :func:`fetch`."""
    revision, token = where.pop("revision", None), where.pop("token", None)
    local_only, at = bool(where.get("local_files_only")), revision or "main"
    prefix = f"{glob.escape(subfolder.strip('/'))}/" if subfolder else ""
    patterns = [f"{prefix}*{suffix}" for suffix in (".safetensors", *SUFFIXES)]
    try:
        with hub_errors(f"read {repo_id} at {at}"):
            path = _api(token).snapshot_download(repo_id, revision=revision, allow_patterns=patterns, **where)
            # Without a listing, the client takes whatever is in the cache for all that there is.
            if not local_only and _cached_listing(repo_id, Path(path).name, where.get("cache_dir")) is None:
                _api(token).list_repo_files(repo_id, revision=Path(path).name)
    except HubError as error:
        raise _unreadable(repo_id, at, error, local_only) from error
    return Path(path) / subfolder


def model_folder(source: str | Path, **where: Any) -> Path:
    """Find the folder of a saved model; the files of a repository are downloaded; see :func:`fetch_model`."""
    return fetch_model(str(source), **where) if is_repository(source) else find_folder(source, (), **where)


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
    api, state, thing = _api(token), ["Nothing was pushed."], thing.without_local_paths()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "saved"
        thing.save_pretrained(folder)
        if pickles := [file.name for file in folder.iterdir() if file.suffix in _PICKLES]:
            raise ValueError(f"a pushed folder must not hold a pickle; received {pickles[0]}.")
        with hub_errors(f"push to {repo_id}", state):
            if "/" not in repo_id:
                repo_id = f"{api.whoami()['name']}/{repo_id}"
            head = str(_open(api, repo_id, revision, private=private, create_pr=create_pr, state=state).sha)
            old_tag = _find_tag(api, repo_id, tag)
            old_card = _read_card(api, repo_id, head, subfolder)
            prefix = f"{subfolder.strip('/')}/" if subfolder else ""
            model = model_on_hub(api, repo_id, head, prefix) if thing.MODEL_BESIDE else None
        source = f'{repo_id}", subfolder="{subfolder}' if subfolder else repo_id
        card = thing.card(source) if hasattr(thing, "card") else other_card(thing, source)
        card = card if old_card is None else merge_cards(old_card, card)
        (folder / "README.md").write_bytes(card.encode())
        changes: list[Any] = [CommitOperationAdd(f"{prefix}{file.name}", file) for file in sorted(folder.iterdir())]
        if is_stale(model, stage=folder, place=repo_id):
            changes.append(CommitOperationDelete(f"{prefix}{MODEL_NAME}"))
        message = commit_message or f"Push {type(thing).__name__} with hf_lottery {__version__}"
        with hub_errors(f"push to {repo_id}", state), lost_commit(state, f"{api.endpoint}/{repo_id}"):
            # The Hub refuses (412) if somebody else has pushed since the card was read.
            done = api.create_commit(
                repo_id, changes, commit_message=message, revision=revision, parent_commit=head, create_pr=create_pr
            )
    if tag is not None and not create_pr:
        _set_tag(api, repo_id, tag, done, old_tag)
    return done.pr_url or done.commit_url


def base_model(config: PreTrainedConfig, *, token: str | bool | None = None) -> dict[str, str | None] | None:
    """Return the repository that a model's configuration names and its commit in the cache; None without one.

    A repository that the cache does not know may be a folder that is gone, and is none.

    Args:
        config: The configuration.
        token: The token for the Hub.
    """
    name = getattr(config, "_name_or_path", None)
    if not name or Path(name).exists() or not REPO_ID.fullmatch(name):
        return None
    try:
        return {"id": name, "revision": _api(token).resolve_revision(name, local_files_only=True).resolved}
    except (HfHubHTTPError, RevisionResolutionError, OfflineModeIsEnabled):
        known = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
        return {"id": name, "revision": None} if known.is_dir() else None  # it was loaded by the name of a commit


def _download(
    repo_id: str, name: str, subfolder: str | None, commit: str, again: bool, common: dict[str, Any]
) -> str | None:
    """The path of a file of a commit in the cache; None if the Hub says that the commit has no such file."""
    path = f"{subfolder.strip('/')}/{name}" if subfolder else name
    if not again and _known_absent(repo_id, path, commit, common["cache_dir"]):
        return None
    try:
        with hub_errors(f"read {path} of {repo_id}"):
            return hf_hub_download(
                repo_id, name, subfolder=subfolder, revision=commit, force_download=again,
                library_name="hf_lottery", library_version=__version__, **common,
            )  # fmt: skip
    except HubError as error:
        if absence(error) == "EntryNotFound":
            return None
        if common["local_files_only"]:
            raise FileNotFoundError(
                f"{path} of {repo_id} must be in the cache, or be known to be absent; received neither. Load it once "
                "without local_files_only."
            ) from error
        raise


def _known_absent(repo_id: str, path: str, commit: str, cache_dir: str | Path | None) -> bool:
    """Whether the cache remembers that a commit has no such file."""
    if try_to_load_from_cache(repo_id, path, cache_dir, revision=commit) is _CACHED_NO_EXIST:
        return True
    listing = _cached_listing(repo_id, commit, cache_dir)
    return listing is not None and path not in listing


def _cached_listing(repo_id: str, commit: str, cache_dir: str | Path | None) -> set[str] | None:
    try:
        return {file.path for file in get_cached_repo_tree(repo_id, revision=commit, cache_dir=cache_dir)}
    except CachedRepoTreeNotFoundError:
        return None


def _open(
    api: HfApi, repo_id: str, revision: str | None, *, private: bool | None, create_pr: bool, state: list[str]
) -> ModelInfo:
    """The head of the branch to push to; repository and branch are created if the Hub says that they do not exist."""
    info = _info(api, repo_id, None)
    if info is None:
        api.create_repo(repo_id, private=private, exist_ok=True)
        state.append(f"The repository {repo_id} was created.")
        info = api.model_info(repo_id)
    if revision is None:
        return info
    info = _info(api, repo_id, revision)
    if info is None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
        state.append(f"The branch {revision} was created.")
    return info or api.model_info(repo_id, revision=revision)


def _info(api: HfApi, repo_id: str, revision: str | None) -> ModelInfo | None:
    try:
        return api.model_info(repo_id, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        if absence(error) is None:
            raise
        return None


def _read_card(api: HfApi, repo_id: str, commit: str, subfolder: str) -> str | None:
    """The card of the repository; None if the Hub lists none. Not found is not enough: an error may say so too."""
    path = f"{subfolder.strip('/')}/README.md" if subfolder else "README.md"
    if not api.get_paths_info(repo_id, path, revision=commit):
        return None
    return Path(api.hf_hub_download(repo_id, path, revision=commit)).read_bytes().decode(errors="replace")


def _find_tag(api: HfApi, repo_id: str, tag: str | None) -> str | None:
    """The commit of a tag, None if there is none."""
    if tag is None:
        return None
    return next((ref.target_commit for ref in api.list_repo_refs(repo_id).tags if ref.name == tag), None)


def _set_tag(api: HfApi, repo_id: str, tag: str, done: CommitInfo, old: str | None) -> None:
    """Set a tag to a commit, given where it is now. The Hub cannot move a tag in one step: it is deleted before."""
    call = f"HfApi().create_tag({repo_id!r}, tag={tag!r}, revision={done.oid!r})"
    state = [f"The commit {done.commit_url} was pushed, but may not have its tag: call {call}."]
    if old is not None:
        state.append(f"The tag was at {old} before, and may be deleted.")
    with hub_errors(f"set the tag {tag} of {repo_id}", state):
        try:
            _move_tag(api, repo_id, tag, old, done.oid)
        except Exception:  # once more from what is there now, as the tag may be deleted and not yet made
            _move_tag(api, repo_id, tag, _find_tag(api, repo_id, tag), done.oid)


def _move_tag(api: HfApi, repo_id: str, tag: str, old: str | None, new: str) -> None:
    if old == new:
        return
    if old is not None:
        api.delete_tag(repo_id, tag=tag)
    api.create_tag(repo_id, tag=tag, revision=new)


def _api(token: str | bool | None) -> HfApi:
    return HfApi(token=token, library_name="hf_lottery", library_version=__version__)


def _unreadable(repo_id: str, at: str, error: HubError, local_only: bool) -> OSError:
    """The error to raise: that of the Hub, unless the repository or revision does not exist, or not in the cache."""
    if not local_only and absence(error) is None:
        return error
    return FileNotFoundError(
        f"the source must be a folder or a repository on the Hub that you may read; received {repo_id!r} at {at}: "
        f"{first_line(origin(error))}"
    )
