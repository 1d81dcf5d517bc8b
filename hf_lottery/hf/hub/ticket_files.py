"""The files of a ticket beside its mask: the weights that it starts from, its model's configuration, and its info."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from ...masks.config import CONFIG_NAME
from ...masks.mask import Mask
from ...storage.checksums import check_files, check_sha256, read_record, sha256_of
from ...storage.encoding import MaskFileError
from ...storage.json_files import read_json, text_sha256
from ...training.snapshot import Snapshot
from ..trainers.run_folder import FILES_NAME, REWIND_NAME
from .difference import Difference
from .model_config import read_model_config
from .model_file import GENERATION_NAME, MODEL_CONFIG_NAME
from .reference import Reference
from .ticket_info import base_id

_GENERATION = "generation_config_sha256"


def stage_start(stage: Path, start: Snapshot | Reference | Difference) -> dict[str, Any]:
    """Write the weights that a ticket starts from; return what the config says of them."""
    if isinstance(start, Reference):
        return {"by": "reference", **start.to_dict()}
    if isinstance(start, Difference):
        return start.stage(stage)
    start.save(stage / REWIND_NAME)
    return {
        "step": start.step,
        "by": "value",
        "sha256": start.sha256(),
        "structure_sha256": _structure_sha256(start.tensors),
        "file_sha256": sha256_of(stage / REWIND_NAME),
    }


def stage_model_config(stage: Path, config: PreTrainedConfig | None, architecture: Any) -> dict[str, Any]:
    """Write the model's configuration, if there is one; return the keys of the config that tell of it.

    Args:
        stage: The folder. A configuration that lies there already is the one to tell of.
        config: The configuration.
        architecture: Name of the model's class, if it is known.
    """
    if config is None:  # the folder may hold another config.json from before
        return {"model_config": False}
    if not (stage / MODEL_CONFIG_NAME).exists():
        config = copy.deepcopy(config)
        if isinstance(architecture, str):  # which Auto classes and pipelines read
            config.architectures = [architecture]
        config.save_pretrained(stage)
    return {
        "model_config": True,
        "model_config_sha256": text_sha256(stage / MODEL_CONFIG_NAME, error=ValueError),
    }


def stage_generation_config(stage: Path, config: GenerationConfig | None) -> dict[str, Any]:
    """Write how the model generates texts, if that is known; return the key of the config that tells of it.

    Args:
        stage: The folder. A file that lies there already is the one to tell of.
        config: Tokens to stop at, how to sample, and the like.
    """
    if config is None:
        return {}
    if not (stage / GENERATION_NAME).exists():
        config.save_pretrained(stage)
    return {_GENERATION: text_sha256(stage / GENERATION_NAME, error=ValueError)}


def read_start(folder: Path, config: Mapping[str, Any], mask: Mask) -> Snapshot | Reference | Difference:
    """Read the weights that a ticket starts from.

    Args:
        folder: The ticket's folder.
        config: What its ``mask_config.json`` says.
        mask: The mask of the ticket.

    Raises:
        FileNotFoundError: There are no weights.
        MaskFileError: The weights are not those that the config states.
    """
    path, stated = folder / REWIND_NAME, config.get("rewind") or {}
    if stated.get("by") == "reference":
        try:
            return Reference.from_dict({key: value for key, value in stated.items() if key != "by"})
        except MaskFileError as error:
            raise MaskFileError(f"{folder / CONFIG_NAME}: {error}") from error
    if stated.get("by") == "difference":
        return Difference.read(folder, stated, mask)
    level = config["format_version"] == 1 or (folder / FILES_NAME).is_file()  # a level of a run states its files itself
    if not stated and not (level and path.exists()):
        raise FileNotFoundError(
            f"a ticket must have weights to start from; received {folder}, which holds only a mask. Load it with "
            "Mask or SignedMask, or pass the folder of the ticket beside it."
        )
    if stated and path.is_file() and _must_state(config, "file_sha256", stated):
        check_sha256(path, stated["file_sha256"], CONFIG_NAME, MaskFileError)
    if not stated and (folder / FILES_NAME).is_file():  # a level of a run
        check_files(folder, read_record(folder / FILES_NAME)["files"])
    start = Snapshot.load(path)
    whole = "file_sha256" in stated or stated.get("sha256") in (None, start.sha256())
    if not whole or stated.get("step") not in (None, start.step):
        raise MaskFileError(
            f"{path} must hold the weights that {CONFIG_NAME} states; received others. "
            "The file is damaged or from another save."
        )
    return start


def read_ticket_model_config(folder: Path, config: Mapping[str, Any]) -> PreTrainedConfig | None:
    """Read the model's configuration of a ticket; None if it has none.

    Raises:
        FileNotFoundError: The file is missing.
        MaskFileError: It is malformed, not the one that the ticket was saved with, or of an unknown model type.
    """
    has_config, path = config.get("model_config"), folder / MODEL_CONFIG_NAME
    if not has_config:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"the ticket must hold {MODEL_CONFIG_NAME}; received {folder} without. Save it again.")
    sealed, digest = _must_state(config, "model_config_sha256", config), text_sha256(path, error=MaskFileError)
    if sealed and digest != config["model_config_sha256"]:
        raise MaskFileError(
            f"{path} must be as the ticket was saved, with the sha256 that {CONFIG_NAME} states; received {digest}. It "
            "was edited, damaged, or saved by something else. Restore it; to change the configuration, load the "
            "ticket, change ticket.model_config, and save the ticket again."
        )
    found = read_model_config(path)
    found._name_or_path = base_id(config.get("info", {})) or ""  # not the folder
    return found


def stated_generation(config: Mapping[str, Any]) -> list[str]:
    """Return the name of the file with the generation config, in a list, if a ticket's config states it."""
    return [GENERATION_NAME] if _GENERATION in config else []


def read_generation_config(folder: Path, config: Mapping[str, Any]) -> GenerationConfig | None:
    """Read how the model of a ticket generates texts; None if the ticket does not know.

    Raises:
        FileNotFoundError: The file is missing.
        MaskFileError: It is malformed, or not the one that the ticket was saved with.
    """
    if not stated_generation(config):
        return None
    path = folder / GENERATION_NAME
    if not path.is_file():
        raise FileNotFoundError(f"the ticket must hold {GENERATION_NAME}; received {folder} without. Save it again.")
    if (digest := text_sha256(path, error=MaskFileError)) != config[_GENERATION]:
        raise MaskFileError(
            f"{path} must be as the ticket was saved, with the sha256 that {CONFIG_NAME} states; received {digest}. "
            "Restore it; to change it, load the ticket, change ticket.generation_config, and save the ticket again."
        )
    read_json(path, error=MaskFileError)  # which bounds it
    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:  # what a configuration can do wrong has no end
        cause = f"{type(error).__name__}: {error!s:.200}"
        raise MaskFileError(f"{path} must be a generation config; received one that fails: {cause}.") from error


def _must_state(config: Mapping[str, Any], key: str, values: Mapping[str, Any]) -> bool:
    """Whether a checksum is stated, as it must be since version 2 of the format."""
    if config["format_version"] == 1 and key not in values:
        return False
    if not isinstance(values.get(key), str):
        raise MaskFileError(f"{CONFIG_NAME} must state {key} as a text; received {values.get(key)!r:.80}.")
    return True


def _structure_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, dtypes and shapes, which all models that a ticket can be applied to have in common."""
    lines = sorted(f"{name}|{tensor.dtype}|{list(tensor.shape)}" for name, tensor in tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
