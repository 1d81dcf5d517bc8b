"""Small models of transformers: saved as any model where their class can express them, and loaded again where not."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ...networks.generators import kept_generators
from ...networks.names import named_tensors
from ...networks.shards import class_name
from ...storage.atomic import staged_folder
from ...structured.attributes import size_changes
from ...structured.comparing import own_error
from ...structured.slicing import Slices
from ...structured.small_network import Shrunk
from ...structured.small_network import load_shrunk as load_into
from ...symmetry.errors import SymmetryError
from ...symmetry.structure import Structure
from .model_config import check_no_kernels, read_model_config
from .model_file import MODEL_CONFIG_NAME
from .processing import stage_processing
from .shrunk_config import expressed_config
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
    spec: Structure,
    inputs: Mapping[str, Any],
    processing: Mapping[str, bytes] | None = None,
) -> bool:
    """Save a small model of transformers.

    If the class can express it, such as with fewer heads in all layers, it is saved as any model: with a changed
    ``config.json``, for ``AutoModel.from_pretrained``. If it cannot, since the layers differ, the folder holds the
    configuration of the large model and what was cut, for :func:`load_shrunk`.

    Args:
        found: What :func:`~hf_lottery.structured.shrunk` returned.
        folder: The folder.
        large: The model before it was cut.
        spec: Its spec.
        inputs: One call's arguments, to prove that the class with its changed configuration computes the same.
        processing: The files of the tokenizer or image processor: name -> bytes.

    Returns:
        Whether the class can express it.

    Raises:
        FileExistsError: The folder holds a model.
    """
    check_no_model(folder)
    small = cast(PreTrainedModel, found.model)
    plain = _expressed(found, spec, large, inputs)
    with staged_folder(folder, last=MODEL_CONFIG_NAME) as stage:
        if plain is not None:
            plain.save_pretrained(stage)
        else:
            found.save(stage)
            config = copy.deepcopy(large.config)
            config.architectures = [class_name(large)]
            config.save_pretrained(stage)
            if small.can_generate():
                cast(Any, large).generation_config.save_pretrained(stage)
        stage_processing(stage, processing or {})
    return plain is not None


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


def _skeleton(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with kept_generators(), torch.device("meta"), no_init_weights():
        model = cast(Any, kind)(copy.deepcopy(config))
    model.tie_weights()
    return model


def _expressed(
    found: Shrunk, spec: Structure, large: PreTrainedModel, inputs: Mapping[str, Any]
) -> PreTrainedModel | None:
    """Build the small model from a configuration of its class; None if there is no such configuration."""
    small = cast(PreTrainedModel, found.model)
    wanted = {name: tuple(tensor.shape) for name, tensor in named_tensors(small).items()}
    built: list[PreTrainedModel] = []

    def proves(config: PreTrainedConfig) -> bool:
        built.append(_filled(type(large), config, small))
        try:
            own_error(small, built[-1], inputs, outputs=None, alike=True)
        except SymmetryError:
            return False
        return True

    config = expressed_config(large.config, type(large), wanted, sizes=_sizes(found, spec), proves=proves)
    return None if config is None else built[-1]


def _sizes(found: Shrunk, spec: Structure) -> Iterator[tuple[int, int]]:
    """Yield sizes before the cut and behind it: of groups, of those that lie together on an axis, and of axes."""
    after = Slices(spec, {name: units.numpy() for name, units in found.units.items()})
    axes = [(name, axis) for name, (shape, _) in found.shapes.items() for axis in range(len(shape))]
    for old, news in size_changes(Slices(spec, {}), after, axes).items():
        yield from ((old, new) for new in news)


def _filled(kind: type[PreTrainedModel], config: PreTrainedConfig, small: PreTrainedModel) -> PreTrainedModel:
    """Build a model from a configuration with the weights of the small one, which has the same shapes."""
    with kept_generators(), no_init_weights():
        model = cast(Any, kind)(copy.deepcopy(config))
    model.tie_weights()
    model.to(small.dtype)
    held: dict[str, Tensor] = {name: tensor.detach() for name, tensor in small.state_dict().items()}
    model.load_state_dict(held)
    if small.can_generate():
        model.generation_config = copy.deepcopy(small.generation_config)
    return model.eval()
