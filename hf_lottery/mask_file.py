"""The mask file: named bool tensors <-> two files in a folder, and nothing else.

``mask.safetensors`` holds one packed bit per weight, ``mask_config.json`` says what they mean and carries their
checksum. docs/mask-format.md specifies both. Nothing here unpickles, imports or builds a path from what a file says.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .staging import staged_folder
from .version import __version__

CONFIG_NAME = "mask_config.json"
MASK_NAME = "mask.safetensors"
FORMAT_VERSION = 1
_MAX_CONFIG_BYTES = 16 * 2**20
_SUFFIX = ".mask"


class MaskFileError(ValueError):
    """A mask file is malformed, damaged, or of a newer format."""


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor of any shape into uint8 ``[ceil(numel / 8)]``: row-major, least significant bit first."""
    return torch.from_numpy(np.packbits(mask.reshape(-1).cpu().numpy(), bitorder="little"))


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo :func:`pack_bits`: the first ``prod(shape)`` bits of uint8 ``packed`` as a bool tensor of ``shape``."""
    bits = np.unpackbits(packed.numpy(), count=math.prod(shape), bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).reshape(shape)


def write_mask(folder: str | Path, entries: Mapping[str, Tensor], extra: Mapping[str, Any] | None = None) -> None:
    """Write ``entries`` (name -> bool tensor) and the config into ``folder``, in one step; see :func:`stage_mask`."""
    with staged_folder(folder, last=CONFIG_NAME) as stage:
        stage_mask(stage, entries, extra)


def stage_mask(
    stage: Path,
    entries: Mapping[str, Tensor],
    extra: Mapping[str, Any] | None = None,
    *,
    signs: Mapping[str, Mapping[str, Any]] | None = None,
    bits: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the two mask files into ``stage``.

    Args:
        stage: An existing folder, normally one from :func:`hf_lottery.staging.staged_folder`.
        entries: Parameter name -> bool tensor, True keeps.
        extra: Further keys of the config (where the mask comes from); they may not shadow the format's own.
        signs: Of a signed mask, the ``signs`` of the config; see :mod:`hf_lottery.sign_file`.
        bits: Of a signed mask, its packed signs by tensor name.
    """
    data = save(
        {**{name + _SUFFIX: pack_bits(mask) for name, mask in entries.items()}, **(bits or {})},
        metadata={"format": "pt", "hf_lottery_format": str(FORMAT_VERSION)},
    )
    weights = sum(mask.numel() for mask in entries.values())
    kept = {name: int(mask.sum()) for name, mask in entries.items()}
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "library_name": "hf_lottery",
        "library_version": __version__,
        "mask_type": "binary" if signs is None else "signed",
        "bit_order": "little",
        "sparsity": 1 - sum(kept.values()) / weights,
        "tensors": {name: {"shape": list(mask.shape), "kept": kept[name]} for name, mask in entries.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    if signs is not None:
        config["signs"] = signs
    if shadowed := config.keys() & (extra or {}).keys():
        raise ValueError(f"extra config keys must not shadow the format's own; received {sorted(shadowed)}.")
    (stage / MASK_NAME).write_bytes(data)
    (stage / CONFIG_NAME).write_text(json.dumps({**config, **(extra or {})}, indent=2) + "\n")


def read_mask(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and check a mask written by :func:`write_mask`.

    Returns:
        The entries (name -> bool tensor, in the order of the config) and the whole config.

    Raises:
        FileNotFoundError: A file is missing.
        MaskFileError: A file is malformed, damaged, or newer than this library.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, MASK_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"a ticket folder must hold {name}; received {folder}. Check the path, or save the mask again."
            )
    config = _read_config(folder / CONFIG_NAME)
    path = folder / MASK_NAME
    check_sha256(path, config["sha256"], CONFIG_NAME, MaskFileError)
    try:
        with safe_open(path, framework="pt") as file:
            _check_names(path, set(file.keys()), config)
            return {name: _read_entry(file, name, spec, path) for name, spec in config["tensors"].items()}, config
    except SafetensorError as error:
        raise MaskFileError(f"{path} must be a safetensors file; received: {error}.") from error


def check_sha256(path: Path, stated: str, stated_in: str, error: type[ValueError]) -> None:
    """Raise ``error`` unless the file has the checksum that the config ``stated_in`` gives."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != stated:
        raise error(
            f"{path} must have the sha256 that {stated_in} states; received {digest}. "
            "The file is truncated, damaged or from another save: save or download it again."
        )


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise MaskFileError(f"{path} must be at most {_MAX_CONFIG_BYTES} bytes; received {path.stat().st_size}.")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MaskFileError(f"{path} must be JSON; received: {error}.") from error
    if not isinstance(config, dict):
        raise MaskFileError(f"{path} must hold a JSON object; received {type(config).__name__}.")
    _check_config(path, config)
    return config


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    version = config.get("format_version")
    if type(version) is not int or version < 1:
        raise MaskFileError(f"{path}: format_version must be a positive integer; received {version!r}.")
    if version > FORMAT_VERSION:
        raise MaskFileError(
            f"{path}: format_version must be at most {FORMAT_VERSION}; received {version}. Install a newer hf_lottery."
        )
    for key, wanted in (("mask_type", ("binary", "signed")), ("bit_order", ("little",))):
        if config.get(key) not in wanted:
            raise MaskFileError(
                f"{path}: {key} must be {' or '.join(map(repr, wanted))}; received {config.get(key)!r}."
            )
    if not isinstance(config.get("sha256"), str):
        raise MaskFileError(f"{path}: sha256 must be a string; received {config.get('sha256')!r}.")
    tensors = config.get("tensors")
    if not isinstance(tensors, dict) or not tensors:
        raise MaskFileError(f"{path}: tensors must name at least one parameter; received {tensors!r}.")
    for name, spec in tensors.items():
        _check_spec(path, name, spec)
    if not any(math.prod(spec["shape"]) for spec in tensors.values()):
        raise MaskFileError(f"{path}: tensors must have at least one weight; received only empty shapes.")
    if config["mask_type"] == "signed":
        _check_signs(path, config.get("signs"), tensors)


def _check_signs(path: Path, signs: Any, tensors: Mapping[str, Any]) -> None:
    if not isinstance(signs, dict) or not tensors.keys() <= signs.keys():
        raise MaskFileError(f"{path}: signs must name every parameter of tensors; received {signs!r:.80}.")
    for name, spec in signs.items():
        _check_spec(path, name, spec, ("negative", "zeros"))
        median = spec.get("median", 0.0)
        if type(median) is not float or not 0 <= median < math.inf:
            raise MaskFileError(f"{path}: the median of {name!r} must be a magnitude; received {median!r}.")


def _check_spec(path: Path, name: str, spec: Any, counts: Sequence[str] = ("kept",)) -> None:
    shape = spec.get("shape") if isinstance(spec, dict) else None
    if not isinstance(shape, list) or any(type(size) is not int or not 0 <= size < 2**63 for size in shape):
        raise MaskFileError(f"{path}: the shape of {name!r} must be a list of sizes; received {shape!r}.")
    for key in counts:
        count = spec.get(key)
        if type(count) is not int or not 0 <= count <= math.prod(shape):
            raise MaskFileError(
                f"{path}: {key} of {name!r} must be a count within its shape {shape}; received {count!r}."
            )


def _check_names(path: Path, stored: set[str], config: Mapping[str, Any]) -> None:
    wanted = {name + _SUFFIX for name in config["tensors"]}
    if config["mask_type"] == "signed":
        wanted |= {f"{name}.sign" for name in config["signs"]}
        wanted |= {f"{name}.zero" for name, spec in config["signs"].items() if spec["zeros"]}
    if stored != wanted:
        raise MaskFileError(
            f"{path} must hold exactly the tensors that {CONFIG_NAME} names; "
            f"received extra {sorted(stored - wanted)[:3]}, missing {sorted(wanted - stored)[:3]}."
        )


def _read_entry(file: Any, name: str, spec: Mapping[str, Any], path: Path) -> Tensor:
    mask = read_bits(file, name + _SUFFIX, math.prod(spec["shape"]), path).reshape(spec["shape"])
    if int(mask.sum()) != spec["kept"]:
        raise MaskFileError(f"{path}: {name!r} must keep {spec['kept']} weights; received {int(mask.sum())}.")
    return mask


def read_bits(file: Any, key: str, count: int, path: Path) -> Tensor:
    """The tensor ``key`` of an open safetensors file, which must be ``count`` packed bits, as bool ``[count]``."""
    stored = file.get_slice(key)
    # The size is compared before anything is allocated: a huge shape in the config costs nothing.
    if stored.get_dtype() != "U8" or stored.get_shape() != [-(-count // 8)]:
        raise MaskFileError(
            f"{path}: {key!r} must be uint8 [{-(-count // 8)}] for {count} bits; "
            f"received {stored.get_dtype()} {stored.get_shape()}."
        )
    packed = file.get_tensor(key)
    if count % 8 and int(packed[-1]) >> (count % 8):
        raise MaskFileError(f"{path}: the padding bits of {key!r} must be zero; received {int(packed[-1]):#010b}.")
    return unpack_bits(packed, (count,))
