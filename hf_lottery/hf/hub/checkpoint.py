"""mask_from_checkpoint(): read the mask of a sparse model that others have saved from its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...masks.file import CONFIG_NAME
from ...masks.mask import Mask
from ...networks.names import plain_name
from ...networks.selection import Patterns, select_names
from ...storage.hub_mixin import Where, find_folder, is_repository
from ..adapter import PEFT_PREFIX, trained_positions
from ..prunable_weights import prunable
from .transfer import fetch_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Endings of names in formats that do not store plain weights: sparse-bitmask of compressed-tensors (the first two),
# GPTQ and AWQ, packed and scaled compressed-tensors, bitsandbytes.
_COMPRESSED = (".bitmask", ".compressed", ".qweight", ".weight_packed", ".weight_scale", ".absmax", ".SCB")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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

    If config.json names a class of the transformers library, names are those of the model in the installed version,
    whatever the file calls them, and the weights are those of :func:`prunable`. Otherwise names are those of the file,
    and the weights are the matrices with zeros. A matrix with only one row of zeros is taken for an embedding with a
    padding row, and left out.

    Args:
        source: A folder, or the id of a repository on the Hub.
        include: As for :func:`prunable`. If the class is not one of transformers, it selects among all matrices.
        exclude: As for :func:`prunable`.
        model: The base model of an adapter, whose file does not tell the shapes of its weights; not used otherwise.
        where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

    Returns:
        The mask; entries have the shapes of the weights.

    Raises:
        FileNotFoundError: There are no weights in the source.
        ValueError: Nothing is pruned, or the weights are pickled, quantised, compressed, incomplete or damaged.
        MaskMismatchError: The adapter is for another base model.

    Example:
        >>> mask_from_checkpoint("path/of/a/sparse/model").sparsity  # doctest: +SKIP
        0.9
    """
    folder = fetch_model(str(source), **where) if is_repository(source) else find_folder(source, (), **where)
    config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    with ExitStack() as stack:
        stored = _stored(folder, stack)
        _refuse_compressed(folder, config, stored)
        if any(name.startswith(PEFT_PREFIX) for name in stored):
            entries = _select(trained_positions(folder, stored, model), include, exclude)
        elif model_class := _transformers_class(config):
            entries = _entries_of(model_class, config, stored, include, exclude)
        elif pairs := _pairs(stored):
            entries = _select({name: stored[key][...] != 0 for name, key in pairs.items()}, include, exclude)
        else:
            matrices = {
                k: s[...] != 0 for k, s in stored.items() if s.get_dtype() in _FLOATS and len(s.get_shape()) > 1
            }
            chosen = matrices if include is not None else {k: e for k, e in matrices.items() if _has_pruned(e)}
            entries = _select(chosen, include, exclude) if chosen else {}
    if all(bool(entry.all()) for entry in entries.values()):
        raise ValueError(
            f"the checkpoint {folder} must hold pruned weights; received no weight that is zero. It is dense: start "
            "from Mask.dense, or pass include='.*' if the pruned weights are those of the task head."
        )
    return Mask(entries)


def _stored(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Tensor name -> open slice, which tells shape and dtype at no cost and gives the tensor by ``[...]``."""
    stored = {}
    for path in _files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{path} must be a safetensors file; received: {error}. Download it again.") from error
        stored.update((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118 - not a mapping
    return stored


def _files(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = _read_json(index).get("weight_map")
        names = list(files.values()) if isinstance(files, dict) else []
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError(f"{index} must map tensors to files beside it; received {files!r:.80}.")
        return [folder / name for name in sorted(set(names))]
    if (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{folder} must hold a model; received a mask or ticket. Use Mask.from_pretrained.")
    if len(files := sorted(folder.glob("*.safetensors"))) == 1:
        return files
    if pickles := sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES):
        raise ValueError(
            f"the weights must be safetensors; received {pickles[0]}, a pickle, which can run code when it is read. "
            "If you trust it, load the model with the code that made it, and save it with save_pretrained."
        )
    found = [file.name for file in files] or "none"
    raise FileNotFoundError(f"{folder} must hold model.safetensors or one .safetensors file; received {found}.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON; received: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object; received {type(content).__name__}.")
    return content


def _refuse_compressed(folder: Path, config: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    keys = [key for key in ("quantization_config", "compression_config", "sparsity_config") if config.get(key)]
    names = [name for name in stored if name.endswith(_COMPRESSED)]
    names += [name for name, part in stored.items() if part.get_dtype().startswith(("F8", "F6", "F4"))]
    if keys or names:
        raise ValueError(
            f"the checkpoint {folder} must hold plain weights; received a quantised or compressed one "
            f"({(keys + names)[0]}), which would load with other weights. Decompress it with the library that wrote "
            "it, and save it with save_pretrained."
        )


def _pairs(stored: Mapping[str, Any]) -> dict[str, str]:
    """Parameter name -> name of its mask, for every pair of torch.nn.utils.prune."""
    names = [name.removesuffix("_orig") for name in stored if name.endswith("_orig")]
    return {name: f"{name}_mask" for name in names if f"{name}_mask" in stored}


def load_model(source: str | Path, **where: Unpack[Where]) -> PreTrainedModel:
    """Load a saved transformers model of the class that its config.json names.

    Args:
        source: A folder, or the id of a repository on the Hub.
        where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

    Raises:
        ValueError: The class is not one of the transformers library.
    """
    folder = find_folder(source, ("config.json",), **where)
    config = _read_json(folder / "config.json")
    found = _transformers_class(config)
    if found is None:
        raise ValueError(
            f"{source} must be a model of the transformers library; received "
            f"architectures={config.get('architectures')}."
        )
    load: Any = found.from_pretrained
    return load(str(source), **where)


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
    if pairs := _pairs(stored):
        used = {f"{name}_orig" for name in pairs} | set(pairs.values())
        support = {k: torch.full(s.get_shape(), _UNCOVERED) for k, s in stored.items() if k not in used}
        support |= {name: stored[mask][...] != 0 for name, mask in pairs.items()}
    else:
        support = {name: part[...] != 0 for name, part in stored.items()}
    load: Any = model_class.from_pretrained
    model, report = load(
        None,
        config=CONFIG_MAPPING[config["model_type"]].from_dict(config),
        state_dict={name: tensor.to(torch.bfloat16) for name, tensor in support.items()},
        dtype=torch.bfloat16,
        attn_implementation="eager",  # any other name would be looked up on the Hub
        output_loading_info=True,
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
            f"the checkpoint must hold every weight; received none for {lost[:3]}. It is of another model."
        )
    return entries


def _select(entries: dict[str, Tensor], include: Patterns | None, exclude: Patterns | None) -> dict[str, Tensor]:
    chosen = select_names(entries, include=include, exclude=exclude, what="a prunable weight")
    return {name: entries[name] for name in chosen}


def _has_pruned(entry: Tensor) -> bool:
    """Whether there are zeros other than one whole row, which is the padding row of an embedding."""
    pruned_in_row = (~entry).flatten(1).sum(1)
    padding = int((pruned_in_row > 0).sum()) == 1 and bool((pruned_in_row == entry[0].numel()).any())
    return bool(pruned_in_row.any()) and not padding
