"""model.safetensors of a ticket: the model as anyone loads it. It never replaces a model that no ticket wrote.

The ticket's config states the checksum of the file, and so claims it. A ticket replaces only a file that is claimed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedModel

from ...masks.config import CONFIG_NAME, read_config
from ...storage.checksums import sha256_of

MODEL_NAME = "model.safetensors"
_CLAIM = "model_file_sha256"


def stage_model(stage: Path, model: PreTrainedModel) -> dict[str, Any]:
    """Write a model as anyone loads it, in one file; return the key of the config that claims it."""
    model.save_pretrained(stage, max_shard_size="1000TB")  # the weights to start from are one file too
    return {_CLAIM: sha256_of(stage / MODEL_NAME)}


def stale_model(folder: Path, *, writes: bool) -> Path | None:
    """Look at the model that lies in the folder of a ticket before the ticket is saved there.

    Args:
        folder: The folder, which need not exist.
        writes: Whether the ticket will write a model.

    Returns:
        The file that an earlier ticket wrote and this one will not replace; None if there is none.

    Raises:
        FileExistsError: The ticket would replace a model that no ticket wrote.
    """
    file, config = folder / MODEL_NAME, folder / CONFIG_NAME
    if not file.is_file():
        return None
    claim = read_config(config).get(_CLAIM) if config.is_file() else None
    own = claim is not None and claim == sha256_of(file)
    return file if is_stale(own, writes=writes, place=str(folder)) else None


def model_on_hub(api: HfApi, repo_id: str, commit: str, prefix: str) -> bool | None:
    """Tell whether the model in a repository is that of the ticket beside it; None if there is no model.

    Args:
        api: The client.
        repo_id: The repository.
        commit: Its head.
        prefix: The folder in the repository, with a slash at the end.
    """
    model, config = f"{prefix}{MODEL_NAME}", f"{prefix}{CONFIG_NAME}"
    there = {file.path: file for file in api.get_paths_info(repo_id, [model, config], revision=commit)}
    if model not in there:
        return None
    if config not in there:
        return False
    claim = read_config(Path(api.hf_hub_download(repo_id, config, revision=commit))).get(_CLAIM)
    large = getattr(there[model], "lfs", None)
    return claim is not None and large is not None and large.sha256 == claim


def is_stale(own: bool | None, *, writes: bool, place: str) -> bool:
    """Tell whether the model at a place must go, as the ticket that is saved there writes none.

    Args:
        own: Whether the model is that of an earlier ticket; None if there is no model.
        writes: Whether the ticket writes a model.
        place: The folder or repository.

    Raises:
        FileExistsError: The ticket would replace a model that no ticket wrote.
    """
    if writes and own is False:
        raise FileExistsError(
            f"a ticket must not replace another model; received {place}, whose {MODEL_NAME} is not that of a ticket. "
            "Choose another folder or repository."
        )
    return bool(own) and not writes
