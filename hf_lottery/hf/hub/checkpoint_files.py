"""The tensors of a checkpoint: found in a folder, opened without code or pickles, under plain names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...masks.config import CONFIG_NAME
from ...networks.names import plain_name
from ...storage.json_files import read_json

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Endings of names in formats that do not store plain weights: sparse-bitmask of compressed-tensors (the first two),
# GPTQ and AWQ, packed and scaled compressed-tensors, bitsandbytes, torchao, Quanto, HQQ, and sparse layouts in parts.
_COMPRESSED = (
    ".bitmask", ".compressed", ".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".absmax", ".SCB",
    "_qdata", ":qdata", ".weight._data", ".W_q", "crow_indices", "ccol_indices",
)  # fmt: skip
_AVERAGED = "n_averaged"  # the count of torch.optim.swa_utils.AveragedModel, the one name without its prefix "module."


def open_tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Open the safetensors of a checkpoint.

    The prefixes of ``torch.compile`` and checkpoint wrappers come off every name, and those of data parallelism if
    every name starts with one, in whatever order they were put on.

    Args:
        folder: The folder of the checkpoint.
        stack: Closes the files.

    Returns:
        Tensor name -> open slice, which tells shape and dtype at no cost and gives the tensor by ``[...]``.

    Raises:
        FileNotFoundError: There are no weights in the folder.
        ValueError: The weights are pickles or damaged, or two tensors have one name.
    """
    stored: list[tuple[str, Any]] = []
    for path in _files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{path} must be a safetensors file; received: {error}. Download it again.") from error
        stored.extend((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118 - not a mapping
    names = [plain_name(name) for name, _ in stored]
    while names != [_AVERAGED] and names and all(name.startswith("module.") or name == _AVERAGED for name in names):
        names = [name.removeprefix("module.") for name in names]
    if twice := next((name for at, name in enumerate(sorted(names)[1:]) if name == sorted(names)[at]), None):
        raise ValueError(
            f"the checkpoint {folder} must hold each tensor once; received {twice!r} twice. If one of them comes from "
            "a wrapper such as torch.compile, save the model inside it."
        )
    return {name: part for name, (_, part) in zip(names, stored, strict=True)}


def check_plain(folder: Path, config: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Check that the weights are plain numbers.

    Args:
        folder: The folder of the checkpoint, for the error message.
        config: Its configuration.
        stored: Its tensors.

    Raises:
        ValueError: They are quantised, compressed, or in parts of a sparse layout.
    """
    keys = [key for key in ("quantization_config", "compression_config", "sparsity_config") if config.get(key)]
    names = [name for name in stored if name.endswith(_COMPRESSED)]
    names += [name for name, part in stored.items() if _is_coded(name, part)]
    if keys or names:
        raise ValueError(
            f"the checkpoint {folder} must hold plain weights; received a quantised or compressed one "
            f"({(keys + names)[0]}), which would load with other weights. Decompress it with the library that wrote "
            "it, and save it with save_pretrained."
        )


def pruning_pairs(stored: Mapping[str, Any]) -> dict[str, str]:
    """Find the pairs of ``torch.nn.utils.prune``; return parameter name -> name of its mask."""
    names = [name.removesuffix("_orig") for name in stored if name.endswith("_orig")]
    return {name: f"{name}_mask" for name in names if f"{name}_mask" in stored}


def _is_coded(name: str, part: Any) -> bool:
    """Whether a tensor holds codes of numbers: few bits of a float, or a matrix of weights in integers."""
    dtype = part.get_dtype()
    integers = name.rpartition(".")[2] == "weight" and dtype.startswith(("I", "U")) and len(part.get_shape()) > 1
    return integers or dtype.startswith(("F8", "F6", "F4"))


def _files(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = read_json(index, error=ValueError).get("weight_map")
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
