"""mask_from_checkpoint(): read the mask of a sparse model that others have saved from its files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...masks.mask import Mask, MaskMismatchError
from ...networks.names import named_weights, plain_name
from ...networks.selection import Patterns, select_names
from ...storage.hub_mixin import Where
from ...storage.json_files import read_json
from ..adapter import PEFT_PREFIX, trained_positions
from ..prunable_weights import prunable
from .checkpoint_files import check_plain, open_tensors, pruning_pairs
from .model_config import check_no_kernels
from .transfer import model_folder

if TYPE_CHECKING:
    from typing_extensions import Unpack

_FLOATS = ("F64", "F32", "F16", "BF16", "C64")
_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.|(^|\.)weight_(g|v|orig)$")
_UNCOVERED = 2.0  # marks a weight that no torch.nn.utils.prune mask covers; 0 is pruned, 1 kept


def mask_from_checkpoint(
    source: str | Path,
    *,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    model: nn.Module | Mapping[str, Tensor] | None = None,
    **where: Unpack[Where],
) -> Mask:
    """Adopt the zeros of a sparse model that somebody saved.

    Only safetensors are read, and no code of the checkpoint is run. These formats are understood:

    - Weights with exact zeros, in ``model.safetensors``, in the shards of ``model.safetensors.index.json``, or in the
      only ``.safetensors`` file of the folder.
    - ``torch.nn.utils.prune``: a pair ``<name>_orig`` and ``<name>_mask`` gives the entry ``<name>``. If there are
      such pairs, only they count.
    - PEFT adapters that train listed positions, in ``adapter_model.safetensors``: SHiRA (``shira_indices`` ``[2, k]``,
      rows and columns) and Super-Tuning (``supertuning_indices`` ``[k]``, flat). The mask keeps what they train.

    A file does not say which of its tensors are weights, and which are buffers full of zeros, such as causal masks and
    tables of positions. One of these must tell:

    - config.json, if it names a class of the transformers library. Names are those of the model in the installed
      version, whatever the file calls them, and the weights are those of :func:`prunable`.
    - ``model``. Names are those of the file, and the weights are those of ``prunable(model)``.
    - ``include``. Names are those of the file, and it selects among all matrices.

    The prefixes of ``torch.compile`` and data parallelism come off the names of the file. A head that is tied to the
    embedding is an embedding, which a mask does not cover, whether the file holds it or not.

    Args:
        source: A folder, or the id of a repository on the Hub.
        include: As for :func:`prunable`; without a model, see above.
        exclude: As for :func:`prunable`.
        model: The model that the weights are of, if config.json does not tell; or the base model of an adapter, whose
            file does not tell the shapes of its weights. Its own weights are not used. A mapping from name to tensor
            stands for a model of which all tensors are weights.
        where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

    Returns:
        The mask; entries have the shapes of the weights.

    Raises:
        FileNotFoundError: There are no weights in the source.
        ValueError: Nothing is pruned, nothing tells weights from buffers, or the weights are pickled, quantised,
            compressed, incomplete or damaged.
        MaskMismatchError: The checkpoint or adapter is of another model.

    Example:
        >>> mask_from_checkpoint("path/of/a/sparse/model").sparsity  # doctest: +SKIP
        0.9
    """
    folder = model_folder(source, **where)
    config = read_json(folder / "config.json", error=ValueError) if (folder / "config.json").is_file() else {}
    with ExitStack() as stack:
        stored = open_tensors(folder, stack)
        check_plain(folder, config, stored)
        if any(name.startswith(PEFT_PREFIX) for name in stored):
            entries = _select(trained_positions(folder, stored, model), include, exclude)
        elif model_class := _transformers_class(config):
            entries = _entries_of(model_class, config, stored, include, exclude)
        elif pairs := pruning_pairs(stored):
            entries = _select({name: stored[key][...] != 0 for name, key in pairs.items()}, include, exclude)
        elif model is not None:
            entries = _entries_like(model, stored, include, exclude)
        else:
            entries = _entries_named(folder, stored, include, exclude)
    if all(bool(entry.all()) for entry in entries.values()):
        raise ValueError(
            f"the checkpoint {folder} must hold pruned weights; received no weight that is zero. It is dense: start "
            "from Mask.dense, or pass include='.*' if the pruned weights are those of the task head."
        )
    return Mask(entries)


def load_model(source: str | Path, **where: Unpack[Where]) -> PreTrainedModel:
    """Load a saved transformers model of the class that its config.json names.

    Args:
        source: A folder, or the id of a repository on the Hub.
        where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

    Raises:
        FileNotFoundError: There is no config.json.
        ValueError: The class is not one of the transformers library, or the weights are quantised or incomplete.
        MaskMismatchError: The weights do not fit config.json.
    """
    folder = model_folder(source, **where)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"a model must be a folder with a config.json; received {folder} without one. A search keeps its ticket in "
            "ticket/."
        )
    config = read_json(folder / "config.json", error=ValueError)
    found = _transformers_class(config)
    if found is None:
        raise ValueError(
            f"{source} must be a model of the transformers library; received "
            f"architectures={config.get('architectures')}."
        )
    check_plain(folder, config, {})
    check_no_kernels(config, source)
    load: Any = found.from_pretrained
    with _fitting(found):
        model, report = load(str(folder), use_safetensors=True, output_loading_info=True)
    model.config.name_or_path = str(source)  # not the folder of the cache
    if lost := sorted(report["missing_keys"]):
        raise ValueError(f"{source} must hold every weight; received none for {lost[:3]}. Save the model again.")
    return model


@contextmanager
def _fitting(model_class: type[PreTrainedModel]) -> Iterator[None]:
    """Say that weights and configuration do not go together, whatever is raised inside."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # what a configuration can do wrong has no end
        raise MaskMismatchError(
            f"the weights must fit the {model_class.__name__} of config.json; received {type(error).__name__}: "
            f"{' '.join(str(error).split())} Correct config.json, or save the model again with save_pretrained."
        ) from error


def _transformers_class(config: Mapping[str, Any]) -> type[PreTrainedModel] | None:
    """The class that config.json names, if it is one of transformers' own for its model type."""
    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        return None
    config_class = CONFIG_MAPPING[model_type]
    for auto in vars(modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None)
        if mapping is None or config_class not in mapping:
            continue
        known = mapping[config_class]
        for candidate in known if isinstance(known, tuple | list) else [known]:
            if [candidate.__name__] == config.get("architectures"):
                return candidate
    return None


def _entries_of(
    model_class: type[PreTrainedModel],
    config: Any,
    stored: Mapping[str, Any],
    include: Patterns | None,
    exclude: Patterns | None,
) -> dict[str, Tensor]:
    # Zeros and ones instead of the weights go through the loading of transformers, which renames, splits and stacks.
    # bfloat16 holds them exactly, and a tiny weight of any precision stays different from zero.
    if pairs := pruning_pairs(stored):
        used = {f"{name}_orig" for name in pairs} | set(pairs.values())
        support = {k: torch.full(s.get_shape(), _UNCOVERED) for k, s in stored.items() if k not in used}
        support |= {name: stored[mask][...] != 0 for name, mask in pairs.items()}
    else:
        support = {name: part[...] != 0 for name, part in stored.items()}
    model, report = _load_support(model_class, config, support)
    lost = [k for k in report["unexpected_keys"] if k.endswith("weight") and k in support and _is_pruned(support[k])]
    if lost and not pairs:
        raise MaskMismatchError(
            f"the model of config.json must have every pruned weight of the checkpoint; received {sorted(lost)[:3]}, "
            f"which {model_class.__name__} has not. Correct config.json, or remove it and pass include."
        )
    if pairs:
        named = {plain_name(name): weight.detach() for name, weight in model.named_parameters()}
        entries = _select({k: w != 0 for k, w in named.items() if bool((w != _UNCOVERED).any())}, include, exclude)
    else:
        entries = {
            name: weight.detach() != 0 for name, weight in prunable(model, include=include, exclude=exclude).items()
        }
    if lost := sorted(entries.keys() & set(report["missing_keys"])):
        raise ValueError(
            f"the checkpoint must hold every weight; received none for {lost[:3]}. It is of another model, or its head "
            "is tied to the embedding, and config.json must say tie_word_embeddings: true."
        )
    return entries


def _load_support(
    model_class: type[PreTrainedModel], config: Any, support: Mapping[str, Tensor]
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    load: Any = model_class.from_pretrained
    with _fitting(model_class):
        return load(
            None,
            config=CONFIG_MAPPING[config["model_type"]].from_dict(config),
            state_dict={name: tensor.to(torch.bfloat16) for name, tensor in support.items()},
            dtype=torch.bfloat16,
            attn_implementation="eager",  # any other name would be looked up on the Hub
            output_loading_info=True,
        )


def _entries_like(
    model: nn.Module | Mapping[str, Tensor],
    stored: Mapping[str, Any],
    include: Patterns | None,
    exclude: Patterns | None,
) -> dict[str, Tensor]:
    named = named_weights(model, numbers=False)
    if isinstance(model, nn.Module):
        weights = dict(prunable(model, include=include, exclude=exclude))
    else:
        weights = {name: named[name] for name in _chosen(named, include, exclude)}
    entries = {}
    for name, weight in weights.items():
        # A tied weight has several names, and a file may hold any of them.
        found = next((other for other, same in named.items() if same is weight and other in stored), None)
        shape = "none" if found is None else str(stored[found].get_shape())
        if found is None or stored[found].get_shape() != [*weight.shape]:
            raise MaskMismatchError(
                f"the checkpoint must hold the weight {name!r} of the model, with the shape {[*weight.shape]}; "
                f"received {shape}. Pass the model that was saved."
            )
        entries[name] = stored[found][...] != 0
    return entries


def _entries_named(
    folder: Path, stored: Mapping[str, Any], include: Patterns | None, exclude: Patterns | None
) -> dict[str, Tensor]:
    matrices = {k: s for k, s in stored.items() if s.get_dtype() in _FLOATS and len(s.get_shape()) > 1}
    if include is None:
        zeros = {name: entry for name, part in matrices.items() if _is_pruned(entry := part[...] != 0)}
        if not zeros:
            return {}
        names = ", ".join(f"{name!r} ({1 - float(entry.float().mean()):.0%})" for name, entry in [*zeros.items()][:5])
        raise ValueError(
            "include must tell weights from buffers (causal masks, tables of positions) where no config.json names a "
            f"class of the transformers library; received none with {folder}. Its tensors with zeros are {names}"
            f"{'' if len(zeros) <= 5 else f' and {len(zeros) - 5} more'}. Pass include with the names of the pruned "
            "weights, or the model as model=. If all of these are buffers, the checkpoint is dense."
        )
    chosen = _chosen(matrices, include, exclude)
    if computed := [name for name in chosen if _PARAMETRIZED.search(name)]:
        raise ValueError(
            f"the weights must be stored as the model uses them; received {computed[0]!r}, which a parametrization or "
            "a weight norm turns into a weight. Remove it from the model, and save the model again."
        )
    _check_tied({name: matrices[name] for name in chosen})
    return {name: matrices[name][...] != 0 for name in chosen}


def _check_tied(parts: Mapping[str, Any]) -> None:
    """Refuse a weight that is stored under two names, such as an embedding and the head that is tied to it."""
    seen: dict[tuple[Any, ...], str] = {}
    for name, part in parts.items():
        values = part[...]
        key = (part.get_dtype(), *part.get_shape(), float(values.abs().double().sum()))
        if key in seen and key[-1] and torch.equal(parts[seen[key]][...], values):
            raise ValueError(
                f"each weight must have one name; received {seen[key]!r} and {name!r} with the same values, as of a "
                "head that is tied to the embedding. Exclude one of them, or pass the model as model=."
            )
        seen.setdefault(key, name)


def _select(entries: dict[str, Tensor], include: Patterns | None, exclude: Patterns | None) -> dict[str, Tensor]:
    return {name: entries[name] for name in _chosen(entries, include, exclude)}


def _chosen(names: Mapping[str, Any], include: Patterns | None, exclude: Patterns | None) -> list[str]:
    return select_names(names, include=include, exclude=exclude, what="a prunable weight")


def _is_pruned(entry: Tensor) -> bool:
    """Whether a matrix has zeros other than one whole row, which is the padding row of an embedding."""
    if entry.ndim < 2 or not entry.numel():
        return False
    pruned_in_row = (entry == 0).flatten(1).sum(1)
    padding = int((pruned_in_row > 0).sum()) == 1 and bool((pruned_in_row == entry[0].numel()).any())
    return bool(pruned_in_row.any()) and not padding
