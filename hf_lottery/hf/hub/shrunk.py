"""Small models of transformers: saved as any model where their class can express them, and loaded again where not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ...networks.generators import kept_generators
from ...networks.shards import class_name
from ...storage.atomic import staged_folder
from ...structured.small_network import Shrunk
from ...structured.small_network import load_shrunk as load_into
from .model_config import check_no_kernels, read_model_config
from .model_file import MODEL_CONFIG_NAME
from .processing import stage_processing
from .ticket_model import known_class
from .transfer import model_folder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...storage.hub_mixin import Where


def save_shrunk(
    found: Shrunk,
    folder: str | Path,
    *,
    large: PreTrainedModel,
    processing: Mapping[str, bytes] | None = None,
) -> None:
    """Save a small model of transformers.

    If its configuration says its sizes (``found.config_fits``), it is saved as any model, for
    ``AutoModel.from_pretrained``. If it cannot, since layers differ, the folder holds the configuration of the large
    model and what was cut, for :func:`load_shrunk`.

    Args:
        found: What :func:`~hf_lottery.structured.shrunk` returned.
        folder: The folder.
        large: The model before it was cut.
        processing: The files of the tokenizer or image processor: name -> bytes.

    Raises:
        FileExistsError: The folder holds a model.
        ValueError: The large model was itself cut, and its configuration does not say its sizes.
    """
    check_no_model(folder)
    small = cast(PreTrainedModel, found.model)
    if not found.config_fits:
        _check_described(large)
    with staged_folder(folder, last=MODEL_CONFIG_NAME) as stage:
        if found.config_fits:
            small.save_pretrained(stage)
        else:
            found.save(stage)
            config = copy.deepcopy(large.config)
            config.architectures = [class_name(large)]
            config.save_pretrained(stage)
            if small.can_generate():
                cast(Any, large).generation_config.save_pretrained(stage)
        stage_processing(stage, processing or {})


def check_no_model(folder: str | Path) -> None:
    """Refuse a folder that holds a model, whose files would mix with those of a small one.

    Raises:
        FileExistsError: It does.
    """
    if (Path(folder) / MODEL_CONFIG_NAME).exists():
        raise FileExistsError(
            f"a small model must be saved where no model is; received {folder}, which has {MODEL_CONFIG_NAME}. Choose "
            "another folder."
        )


def load_shrunk(folder: str | Path, **where: Unpack[Where]) -> PreTrainedModel:
    """Load a small model that :func:`save_shrunk` saved because its class cannot express it.

    The large model is built on the meta device, without weights and without code of a repository, and takes the sizes
    and weights of the small one.

    Args:
        folder: The folder, or the id of a repository on the Hub.
        where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: There is no small model.
        MaskFileError: A file is malformed or damaged, or the model type is unknown.
        ValueError: transformers does not know the class.
    """
    place = model_folder(folder, **where)
    config = read_model_config(place / MODEL_CONFIG_NAME)
    check_no_kernels(config, folder)
    names = config.architectures or [None]
    kind = known_class(str(names[0]), config)
    if kind is None:
        raise ValueError(
            f"the class must be one that transformers knows for a {type(config).__name__}; received {names[0]!r:.80}. "
            "Import the module that registers it with AutoModel.register."
        )
    model = load_into(place, _skeleton(kind, config))
    return cast(PreTrainedModel, model).eval()


def _check_described(large: PreTrainedModel) -> None:
    """Refuse a model that its configuration does not describe, as nothing could build it again."""
    skeleton = dict(_skeleton(type(large), large.config).named_parameters())
    for name, weight in large.named_parameters():
        if name not in skeleton or skeleton[name].shape != weight.shape:
            raise ValueError(
                f"the large model must have the sizes of its configuration; received another {name!r}, as of a model "
                "that was cut before. Cut the first one, once."
            )


def _skeleton(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with kept_generators(), torch.device("meta"), no_init_weights():
        model = cast(Any, kind)(copy.deepcopy(config))
    model.tie_weights()
    return model
