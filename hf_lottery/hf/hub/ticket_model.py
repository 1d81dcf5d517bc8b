"""The model of a ticket: built from what the ticket knows, at the weights that it starts from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, set_seed
from transformers.models.auto import modeling_auto

from ...networks.generators import kept_generators
from ...networks.names import named_state
from ...training.snapshot import Snapshot
from .reference import Reference


def known_class(architecture: str, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return the class of a model: one of transformers, or one that ``AutoModel.register`` was called for.

    Args:
        architecture: Its name.
        config: A configuration that it takes.

    Returns:
        The class; None if there is none.
    """
    for kind in (getattr(transformers, architecture, None), *_registered(type(config))):
        fits = isinstance(kind, type) and issubclass(kind, PreTrainedModel) and kind.__name__ == architecture
        if fits and isinstance(config, cast(Any, kind).config_class or PreTrainedConfig):
            return kind
    return None


def build_start(
    architecture: str, config: PreTrainedConfig, start: Snapshot | Reference, **where: Any
) -> PreTrainedModel:
    """Build a model where training starts, or where :meth:`Ticket.apply_` puts it there.

    Args:
        architecture: Name of its class.
        config: Its configuration; not changed.
        start: The weights. Those on the Hub are downloaded, those of a seed are drawn again; stored ones are not yet
            put into the model.
        where: For weights on the Hub: ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

    Raises:
        ValueError: There is no class of this name that takes such a configuration.
    """
    kind, config = known_class(architecture, config), copy.deepcopy(config)
    if kind is None:
        raise ValueError(
            f"the model's class must be one that transformers knows for a {type(config).__name__}; received "
            f"{architecture!r:.80}. Import the module that registers it with AutoModel.register, or build the "
            "model yourself and call ticket.apply_(model)."
        )
    with kept_generators():
        if isinstance(start, Reference) and start.kind == "pretrained":
            # The repository's own configuration may have another dropout, or another precision.
            place = {"revision": start.revision, "config": config, **where}
            return kind.from_pretrained(cast(str, start.repo_id), **place)
        set_seed(cast(int, start.seed) if isinstance(start, Reference) else 0)
        model = cast(Any, kind)(config)
    if isinstance(start, Snapshot):
        _take_dtypes_(model, start)
    return model


def _registered(config: type[PreTrainedConfig]) -> Iterator[Any]:
    """Yield the classes that are registered for a configuration, for any task."""
    for name in dir(modeling_auto):
        if name.startswith("MODEL_") and name.endswith("MAPPING"):
            found = getattr(modeling_auto, name).get(config, ())
            yield from found if isinstance(found, tuple) else (found,)


def _take_dtypes_(model: nn.Module, start: Snapshot) -> None:
    """Give each weight the precision in which it is stored."""
    for name, tensor in named_state(model).items():
        if name in start.tensors:
            tensor.data = tensor.data.to(start.tensors[name].dtype)
