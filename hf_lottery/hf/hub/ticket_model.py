"""The model of a ticket: built from what the ticket knows, at the weights that it starts from."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, set_seed
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto

from ...networks.generators import kept_generators
from ...networks.names import base_of, named_state
from ...networks.shards import local, own_class, part_of
from ...training.snapshot import Snapshot
from .difference import Difference
from .reference import Reference


def defined_in(model: nn.Module) -> str:
    """Return the package whose code defines a model's class, such as "transformers"; a script is "__main__"."""
    return own_class(base_of(model)).__module__.partition(".")[0]


def known_class(
    architecture: str, config: PreTrainedConfig, package: str | None = None
) -> type[PreTrainedModel] | None:
    """Return the class of a model: one of transformers, or one that ``AutoModel.register`` was called for.

    Args:
        architecture: Its name.
        config: A configuration that it takes.
        package: The package that defines it, as :func:`defined_in` gives it. A class of one's own is never taken for
            the class of the same name in transformers. None if it is not known.

    Returns:
        The class; None if there is none.
    """
    for kind in (getattr(transformers, architecture, None), *_registered(type(config))):
        fits = isinstance(kind, type) and issubclass(kind, PreTrainedModel) and kind.__name__ == architecture
        if not fits or not isinstance(config, cast(Any, kind).config_class or PreTrainedConfig):
            continue
        # A script's module has another name where it is imported, so only transformers' own classes are told apart.
        of_transformers = kind.__module__.startswith("transformers.")
        if package is None or of_transformers == (package == "transformers"):
            return kind
    return None


def build_start(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    start: Snapshot | Reference,
    *,
    generation: GenerationConfig | None = None,
    **where: Any,
) -> PreTrainedModel:
    """Build a model where training starts, or where :meth:`Ticket.apply_` puts it there.

    Args:
        kind: Its class.
        config: Its configuration; not changed.
        start: The weights. Those on the Hub are downloaded, those of a seed are drawn again. Where they are stored,
            the model has no values yet.
        generation: How it generates texts. Default: as its configuration or its repository says.
        where: For weights on the Hub: ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.
    """
    model = _build(kind, copy.deepcopy(config), start, where)
    if generation is not None:
        model.generation_config = copy.deepcopy(generation)
    return model


def _build(
    kind: type[PreTrainedModel], config: PreTrainedConfig, start: Snapshot | Reference, where: dict[str, Any]
) -> PreTrainedModel:
    with kept_generators():
        if isinstance(start, Reference) and start.kind == "pretrained":
            # The repository's own configuration may have another dropout, or another precision.
            place = {"revision": start.revision, "config": config, **where}
            return kind.from_pretrained(cast(str, start.repo_id), **place)
        if isinstance(start, Reference):
            set_seed(cast(int, start.seed))
            return cast(Any, kind)(config)
        with no_init_weights():  # drawing values that are replaced takes minutes for a large model
            model = cast(Any, kind)(config)
    model.tie_weights()  # which the initialization would have done
    _take_dtypes_(model, start)
    return model


def loads_alike(model: PreTrainedModel, start: Snapshot) -> bool:
    """Tell whether ``from_pretrained`` gives a model the buffers that its file does not hold; if not, warn.

    Transformers makes the model without numbers, so that a class of one's own must fill them in ``_init_weights``.

    Args:
        model: The model; its own values do not count.
        start: The weights and buffers that it should have.
    """
    lost = sorted(named_state(model, numbers=False).keys() - model.state_dict().keys())
    if defined_in(model) == "transformers" or not lost:
        return True
    stored = {name: tensor for name, tensor in start.tensors.items() if name not in lost}
    with kept_generators():
        again = cast(Any, type(model)).from_pretrained(None, config=copy.deepcopy(model.config), state_dict=stored)
    found = named_state(again, numbers=False)
    if differing := [n for n in lost if not torch.equal(found[n], start.tensors[n].to(found[n].dtype))]:
        warnings.warn(
            f"no model.safetensors is written, as from_pretrained of {type(model).__name__} would lose the values of "
            f"{', '.join(differing)}. Fill these buffers in its _init_weights, or load the ticket with build_model.",
            stacklevel=4,
        )
    return not differing


def structural_differences(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """List how the weights and buffers of a ticket differ from those of a model in name, shape and precision.

    Args:
        theirs: Those of the ticket.
        ours: Those of the model.
    """
    found = [
        f"{name!r} only in the {'ticket' if name in theirs else 'model'}"
        for name in sorted(theirs.keys() ^ ours.keys())
    ]
    for name in theirs.keys() & ours.keys():
        a, b = theirs[name], ours[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            found.append(f"{name!r} {list(a.shape)} {a.dtype} in the ticket, {list(b.shape)} {b.dtype} here")
    return found


def restore_fitting_(model: nn.Module, start: Snapshot | Reference | Difference) -> None:
    """Put the stored weights and buffers that fit a model into it, in place.

    Args:
        model: The model.
        start: The weights that a ticket starts from.
    """
    if isinstance(start, Reference):
        return  # nothing is stored that could be restored
    if isinstance(start, Difference):
        return start.restore_(model)  # which fits wholly, or not at all
    with torch.no_grad():
        for name, tensor in named_state(model).items():
            if name in start.tensors and start.tensors[name].shape == tensor.shape:
                local(tensor).copy_(part_of(start.tensors[name], tensor))


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
