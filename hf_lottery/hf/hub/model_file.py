"""The files of a ticket that others may have written before it: it never replaces a model or tokenizer of theirs.

The config of a ticket states the checksum of each such file, and so claims it. A ticket replaces only what is claimed.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import PreTrainedModel

from ...masks.config import CONFIG_NAME, read_config
from ...storage.checksums import sha256_of
from ...storage.encoding import MaskFileError
from .processing import stated_processing

MODEL_NAME = "model.safetensors"
MODEL_CONFIG_NAME = "config.json"
GENERATION_NAME = "generation_config.json"
_CLAIM = "model_file_sha256"
# What transformers and PEFT load a model from, in the whole or in parts; all of them go by the config.json beside them.
_WEIGHTS = (
    MODEL_NAME,
    *("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_config.json"),
)


def stage_model(stage: Path, model: PreTrainedModel) -> dict[str, Any]:
    """Write a model as anyone loads it, in one file; return the key of the config that claims it."""
    save_model(stage, model, max_shard_size="1000TB")  # the weights to start from are one file too
    return {_CLAIM: sha256_of(stage / MODEL_NAME)}


def save_model(folder: Path, model: PreTrainedModel, **options: Any) -> None:
    """Save a model as transformers does, but state the widest precision of its weights.

    Transformers loads all weights in the one precision that ``config.json`` states, and writes that of the first.

    Args:
        folder: Where to save it.
        model: The model.
        options: As for ``save_pretrained``.
    """
    model.save_pretrained(folder, **options)
    kinds = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    if len(kinds) > 1:
        config = copy.deepcopy(model.config)
        config.dtype = functools.reduce(torch.promote_types, kinds)
        config.save_pretrained(folder)


def stale_model(folder: Path, stage: Path, processing: Iterable[str]) -> Path | None:
    """Look at what lies in the folder of a ticket before the ticket is saved there.

    Args:
        folder: The folder, which need not exist.
        stage: The folder with the files that the ticket will write there.
        processing: Names of those that are of its tokenizer or image processor.

    Returns:
        The model that an earlier ticket wrote and this one will not replace; None if there is none.

    Raises:
        FileExistsError: The ticket would replace a model, its configuration, or a file of a tokenizer or image
            processor that no ticket wrote.
    """
    claim, claims = _claims(folder / CONFIG_NAME)
    for name in processing:
        if (folder / name).is_file() and sha256_of(folder / name) not in (claims.get(name), sha256_of(stage / name)):
            raise FileExistsError(
                f"a ticket must not replace another tokenizer or image processor; received {folder}, whose {name} is "
                "not that of a ticket. Choose another folder."
            )
    there = [name for name in _WEIGHTS if (folder / name).is_file()]
    own = None
    if there:
        # A save that was killed may have left this ticket's model beside the config of an earlier one.
        known = [claim, sha256_of(stage / MODEL_NAME) if (stage / MODEL_NAME).is_file() else None]
        own = there == [MODEL_NAME] and sha256_of(folder / MODEL_NAME) in known
    return folder / MODEL_NAME if is_stale(own, stage=stage, place=str(folder)) else None


def model_on_hub(api: HfApi, repo_id: str, commit: str, prefix: str) -> bool | None:
    """Tell whether the model in a repository is that of the ticket beside it; None if there is no model.

    Args:
        api: The client.
        repo_id: The repository.
        commit: Its head.
        prefix: The folder in the repository, with a slash at the end.
    """
    model, config = f"{prefix}{MODEL_NAME}", f"{prefix}{CONFIG_NAME}"
    asked = [config, *(f"{prefix}{name}" for name in _WEIGHTS)]
    there = {file.path: file for file in api.get_paths_info(repo_id, asked, revision=commit)}
    if there.keys() <= {config}:
        return None
    if there.keys() != {config, model}:
        return False
    claim, _ = _claims(Path(api.hf_hub_download(repo_id, config, revision=commit)))
    large = getattr(there[model], "lfs", None)
    return claim is not None and large is not None and large.sha256 == claim


def is_stale(own: bool | None, *, stage: Path, place: str) -> bool:
    """Tell whether the model at a place must go, as the ticket that is saved there writes none.

    Args:
        own: Whether the model is that of an earlier ticket; None if there is no model.
        stage: The folder with the files that the ticket writes.
        place: The folder or repository.

    Raises:
        FileExistsError: The ticket would replace a model or its configuration that no ticket wrote.
    """
    if own is False and (stage / MODEL_CONFIG_NAME).exists():
        raise FileExistsError(
            f"a ticket must not replace another model nor its {MODEL_CONFIG_NAME}; received {place}, which holds a "
            "model that is not that of a ticket. Choose another folder or repository."
        )
    return bool(own) and not (stage / MODEL_NAME).exists()


def _claims(path: Path) -> tuple[Any, dict[str, str]]:
    """What the config of an earlier save claims: the checksum of its model, and those of its tokenizer's files."""
    try:
        config = read_config(path)
        return config.get(_CLAIM), stated_processing(config)
    except (FileNotFoundError, MaskFileError):  # nothing was saved there, or it is damaged and claims nothing
        return None, {}
