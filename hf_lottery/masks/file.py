"""The mask file: write named bool tensors, or series of them, as two files in a folder, and read them back.

``mask.safetensors`` holds the bits, ``mask_config.json`` says what they mean and carries their checksum.
docs/mask-format.md specifies both. Nothing here unpickles, imports, or builds a path from the contents of a file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..storage.atomic import staged_folder
from ..storage.checksums import check_sha256
from ..storage.encoding import (
    MAX_RATIO,
    MaskFileError,
    NestedBits,
    count_ones,
    encode,
    pack_bits,
    packed_size,
    read_bits,
    read_packed,
    unpack_bits,
)
from ..storage.json_files import seal_json
from ..version import __version__
from .config import CONFIG_NAME, FORMAT_VERSION, read_config

MASK_NAME = "mask.safetensors"
_SUFFIX = ".mask"
_OWN_KEYS = ("levels", "signs")  # only some types have them, but no other key may use these names


def write_mask(
    folder: str | Path, entries: Mapping[str, Tensor], *, extra: Mapping[str, Any] | None = None, compress: bool = True
) -> None:
    """Write ``entries`` (name -> bool tensor) and the config into ``folder``, in one step; see :func:`stage_mask`."""
    with staged_folder(folder, last=CONFIG_NAME) as stage:
        stage_mask(stage, entries, extra=extra, compress=compress)


def stage_mask(
    stage: Path,
    entries: Mapping[str, Tensor],
    *,
    extra: Mapping[str, Any] | None = None,
    signs: Mapping[str, Mapping[str, Any]] | None = None,
    bits: Mapping[str, Tensor] | None = None,
    compress: bool = True,
) -> None:
    """Write the two mask files into ``stage``.

    Args:
        stage: An existing folder, normally one from :func:`hf_lottery.storage.atomic.staged_folder`.
        entries: Parameter name -> bool tensor, True keeps.
        extra: Further keys of the config (where the mask comes from); they may not shadow the format's own.
        signs: For a signed mask, the ``signs`` of the config; see :mod:`hf_lottery.signs.file`.
        bits: For a signed mask, its packed signs by tensor name.
        compress: Whether to compress each tensor that gets smaller by it, which takes some 25 ns a weight. Otherwise
            every tensor takes one bit a weight.
    """
    tensors, specs, kept = dict(bits or {}), {}, 0
    for name, mask in entries.items():
        tensors[name + _SUFFIX], encoding = encode(pack_bits(mask), compress=compress)
        specs[name] = {"shape": list(mask.shape), "kept": count_ones(mask)}
        kept += specs[name]["kept"]
        if encoding != "bits":
            specs[name]["encoding"] = encoding
    own: dict[str, Any] = {
        "mask_type": "binary" if signs is None else "signed",
        "sparsity": 1 - kept / sum(mask.numel() for mask in entries.values()),
        "tensors": specs,
    }
    _stage(stage, tensors, own if signs is None else {**own, "signs": signs}, extra)


def stage_series(
    stage: Path,
    series: Mapping[str, NestedBits],
    *,
    extra: Mapping[str, Any] | None = None,
    compress: bool = True,
) -> None:
    """Write a series of nested masks into ``stage``; arguments as for :func:`stage_mask`.

    Args:
        stage: An existing folder.
        series: Parameter name -> its bits at every level; all parameters have the same number of levels.
        extra: Further keys of the config.
        compress: Whether to compress each tensor that gets smaller by it.
    """
    tensors, specs, levels = {}, {}, 0
    for name, bits in series.items():
        stored, encodings = _encode_levels(bits, compress)
        tensors |= {_level_key(name, number): tensor for number, tensor in stored.items()}
        specs[name] = {"shape": list(bits.shape), "kept": list(bits.kept), "encoding": encodings}
        levels = len(encodings)
    kept = sum(bits.kept[-1] for bits in series.values())
    own = {
        "mask_type": "series",
        "levels": levels,
        "sparsity": 1 - kept / sum(bits.candidates(0) for bits in series.values()),
        "tensors": specs,
    }
    _stage(stage, tensors, own, extra)


def read_mask(folder: str | Path, *, level: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and check a mask written by :func:`write_mask`, or one of a series.

    Args:
        folder: The folder that holds the two files. The signs of a signed mask are not read.
        level: The level to read from a series; by default the last.

    Returns:
        The entries (name -> bool tensor, in the order of the config) and the whole config.

    Raises:
        FileNotFoundError: A file is missing.
        MaskFileError: A file is malformed, damaged, or newer than this library.
        ValueError: There is no such level.
    """
    path = Path(folder) / MASK_NAME
    with open_mask(folder) as (file, config):
        tensors = config["tensors"]
        if config["mask_type"] != "series":
            if level is not None:
                raise ValueError(
                    f"level must come with a series of masks; received {level} for {folder}, which holds one mask. "
                    "Omit it."
                )
            return read_entries(file, config, path), config
        number = _chosen_level(level, config["levels"], folder)
        return {
            name: _read_nested(file, name, spec, path, number).level(number) for name, spec in tensors.items()
        }, config


def _chosen_level(level: int | None, levels: int, folder: str | Path) -> int:
    if level is None:
        return levels - 1
    if type(level) is not int or not 0 <= level < levels:
        raise ValueError(
            f"level must be a whole number from 0 to {levels - 1}, as {folder} holds {levels}; received {level!r}."
        )
    return level


def read_series(folder: str | Path) -> dict[str, NestedBits]:
    """Read and check the series of masks that :func:`stage_series` wrote: parameter name -> its bits at every level.

    Raises:
        FileNotFoundError: A file is missing.
        MaskFileError: A file is malformed, damaged, newer than this library, or not a series.
    """
    path = Path(folder) / MASK_NAME
    with open_mask(folder) as (file, config):
        if config["mask_type"] != "series":
            raise MaskFileError(
                f"{path} must hold a series; received a {config['mask_type']} mask. Load it with Mask.from_pretrained."
            )
        last = config["levels"] - 1
        return {name: _read_nested(file, name, spec, path, last) for name, spec in config["tensors"].items()}


@contextmanager
def open_mask(folder: str | Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Check everything in a mask folder except the bits, and yield the open safetensors file and the config.

    Raises:
        FileNotFoundError: A file is missing.
        MaskFileError: A file is malformed, damaged, or newer than this library.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, MASK_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"a mask folder must hold {name}; received {folder}. A search keeps its ticket in ticket/. To adopt "
                "the zeros of a sparse model, use Mask.from_checkpoint."
            )
    config = read_config(folder / CONFIG_NAME)
    path = folder / MASK_NAME
    check_sha256(path, config["sha256"], CONFIG_NAME, MaskFileError)
    try:
        with safe_open(path, framework="pt") as file:
            _check_names(path, set(file.keys()), config)
            if config["mask_type"] == "series":
                _check_ratios(path, file, config["tensors"])
            yield file, config
    except SafetensorError as error:
        raise MaskFileError(f"{path} must be a safetensors file; received: {error!s:.200}.") from error


def _stage(stage: Path, tensors: Mapping[str, Tensor], own: Mapping[str, Any], extra: Mapping[str, Any] | None) -> None:
    data = save(dict(tensors), metadata={"format": "pt", "hf_lottery_format": str(FORMAT_VERSION)})
    config = {
        "format_version": FORMAT_VERSION,
        "library_name": "hf_lottery",
        "library_version": __version__,
        "bit_order": "little",
        **own,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    if shadowed := {*config, *_OWN_KEYS} & (extra or {}).keys():
        raise ValueError(f"extra config keys must not shadow the format's own; received {sorted(shadowed)}.")
    text = seal_json({**config, **(extra or {})}, what=CONFIG_NAME)
    (stage / MASK_NAME).write_bytes(data)
    (stage / CONFIG_NAME).write_bytes(text)


def _level_key(name: str, number: int) -> str:
    return f"{name}.level-{number:02}"


def _encode_levels(bits: NestedBits, compress: bool) -> tuple[dict[int, Tensor], list[str]]:
    """The tensors to store for one parameter, by level, and the encodings of all its levels."""
    stored, encodings = {}, ["constant"] * len(bits.kept)
    for number, packed in enumerate(bits.packed):
        if packed is not None:
            stored[number], encodings[number] = encode(packed, compress=compress)
    if packed_size(bits.candidates(0)) > MAX_RATIO * sum(len(tensor) for tensor in stored.values()):
        # Too little is stored for a reader to believe the shape. So the first level, which is constant, is written out.
        stored[0], encodings[0] = encode(pack_bits(bits.level(0)), compress=compress)
    return stored, encodings


def _check_names(path: Path, stored: set[str], config: Mapping[str, Any]) -> None:
    if config["mask_type"] == "series":
        wanted = {
            _level_key(name, number)
            for name, spec in config["tensors"].items()
            for number, encoding in enumerate(spec["encoding"])
            if encoding != "constant"
        }
    else:
        wanted = {name + _SUFFIX for name in config["tensors"]}
    if config["mask_type"] == "signed":
        wanted |= {f"{name}.sign" for name in config["signs"]}
        wanted |= {f"{name}.zero" for name, spec in config["signs"].items() if spec["zeros"]}
    if stored != wanted:
        raise MaskFileError(
            f"{path} must hold exactly the tensors that {CONFIG_NAME} names; "
            f"received extra {sorted(stored - wanted)[:3]!s:.200}, missing {sorted(wanted - stored)[:3]!s:.200}."
        )


def _check_ratios(path: Path, file: Any, tensors: Mapping[str, Any]) -> None:
    """Constant levels take no bytes, so a shape is believed only if the other levels have bytes enough for it."""
    for name, spec in tensors.items():
        keys = [_level_key(name, number) for number, kind in enumerate(spec["encoding"]) if kind != "constant"]
        stored = sum(math.prod(file.get_slice(key).get_shape()) for key in keys)
        if packed_size(math.prod(spec["shape"])) > MAX_RATIO * stored:
            raise MaskFileError(
                f"{path}: {name!r:.80} must have at least a byte for {8 * MAX_RATIO} weights; "
                f"received {stored} bytes for the shape {spec['shape']!s:.80}."
            )


def read_entries(file: Any, config: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Read the entries of an open mask that is not a series, in the order of the config."""
    entries = {}
    for name, spec in config["tensors"].items():
        mask = read_bits(file, name + _SUFFIX, math.prod(spec["shape"]), path, encoding=spec.get("encoding", "bits"))
        _check_kept(path, name, mask, spec["kept"])
        entries[name] = mask.reshape(spec["shape"])
    return entries


def _read_nested(file: Any, name: str, spec: Mapping[str, Any], path: Path, last: int) -> NestedBits:
    """The bits of one parameter at all levels up to ``last``."""
    kept, levels, count = spec["kept"][: last + 1], [], math.prod(spec["shape"])
    for number, (wanted, encoding) in enumerate(zip(kept, spec["encoding"], strict=False)):
        packed = None
        if encoding != "constant":
            packed = read_packed(file, _level_key(name, number), count, encoding, path)
            _check_kept(path, f"{name} at level {number}", unpack_bits(packed, (count,)), wanted)
        levels.append(None if wanted in (0, count) else packed)
        count = wanted
    return NestedBits(tuple(spec["shape"]), tuple(kept), tuple(levels))


def _check_kept(path: Path, what: str, mask: Tensor, kept: int) -> None:
    if (found := count_ones(mask)) != kept:
        raise MaskFileError(f"{path}: {what!r:.80} must keep {kept} weights; received {found}.")
