"""The config of a mask file: it is read, and checked key by key before anything is done with it.

docs/mask-format.md specifies it. A config that passes has the types, sizes and counts that the format asks for. Whether
the bits agree with them is checked where the bits are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..storage.encoding import ENCODINGS, MaskFileError
from ..storage.json_files import read_sealed

CONFIG_NAME = "mask_config.json"
FORMAT_VERSION = 2
_MAX_SIZES = 64
_TYPES = ("binary", "signed", "series")


def read_config(path: Path) -> dict[str, Any]:
    """Read and check ``mask_config.json``.

    Raises:
        MaskFileError: The file is malformed, changed, too large, or newer than this library.
    """
    config = read_sealed(path, version=FORMAT_VERSION, error=MaskFileError)
    _check_config(path, config)
    return config


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    for key, wanted in (("mask_type", _TYPES), ("bit_order", ("little",))):
        if config.get(key) not in wanted:
            raise MaskFileError(
                f"{path}: {key} must be {' or '.join(map(repr, wanted))}; received {config.get(key)!r:.80}."
            )
    if not isinstance(config.get("sha256"), str):
        raise MaskFileError(f"{path}: sha256 must be a string; received {config.get('sha256')!r:.80}.")
    for key in ("info", "rewind"):  # of a ticket; what is in them is for the ticket to check
        if not isinstance(config.get(key, {}), dict):
            raise MaskFileError(f"{path}: {key} must be an object; received {config[key]!r:.80}.")
    tensors = config.get("tensors")
    if not isinstance(tensors, dict) or not tensors:
        raise MaskFileError(f"{path}: tensors must name at least one parameter; received {tensors!r:.80}.")
    if config["mask_type"] == "series":
        _check_series(path, config.get("levels"), tensors)
    else:
        for name, spec in tensors.items():
            _check_counts(path, name, spec, ("kept",))
            _check_encoding(path, name, spec.get("encoding", "bits"), ENCODINGS)
    if not any(math.prod(spec["shape"]) for spec in tensors.values()):
        raise MaskFileError(f"{path}: tensors must have at least one weight; received only empty shapes.")
    if config["mask_type"] == "signed":
        _check_signs(path, config.get("signs"), tensors)


def _check_signs(path: Path, signs: Any, tensors: Mapping[str, Any]) -> None:
    if not isinstance(signs, dict) or not tensors.keys() <= signs.keys():
        raise MaskFileError(f"{path}: signs must name every parameter of tensors; received {signs!r:.80}.")
    for name, spec in signs.items():
        _check_counts(path, name, spec, ("negative", "zeros"))
        median = spec.get("median", 0.0)
        if type(median) not in (int, float) or not 0 <= median < 1e308:
            raise MaskFileError(f"{path}: the median of {name!r:.80} must be a magnitude; received {median!r:.80}.")


def _check_series(path: Path, levels: Any, tensors: Mapping[str, Any]) -> None:
    if type(levels) is not int or levels < 1:
        raise MaskFileError(f"{path}: levels must be a positive integer; received {levels!r:.80}.")
    for name, spec in tensors.items():
        before = _check_shape(path, name, spec)
        for key in ("kept", "encoding"):
            values = spec.get(key)
            if not isinstance(values, list) or len(values) != levels:
                raise MaskFileError(
                    f"{path}: {key} of {name!r:.80} must be a list of {levels}, one a level; received {values!r:.80}."
                )
        for kept, encoding in zip(spec["kept"], spec["encoding"], strict=True):
            _check_count(path, f"kept of {name!r:.80}", kept, before)
            _check_encoding(path, name, encoding, (*ENCODINGS, "constant"))
            if encoding == "constant" and kept not in (0, before):
                raise MaskFileError(
                    f"{path}: a constant level of {name!r:.80} must keep all of {before} weights or none; "
                    f"received {kept}."
                )
            before = kept


def _check_shape(path: Path, name: str, spec: Any) -> int:
    """Check the shape of a tensor and return its number of weights."""
    shape = spec.get("shape") if isinstance(spec, dict) else None
    if not isinstance(shape, list) or any(type(size) is not int or not 0 <= size < 2**63 for size in shape):
        raise MaskFileError(f"{path}: the shape of {name!r:.80} must be a list of sizes; received {shape!r:.80}.")
    # The number of sizes is checked first, as the product of a million large ones would take hours.
    if len(shape) > _MAX_SIZES or math.prod(size for size in shape if size) >= 2**63:
        raise MaskFileError(
            f"{path}: the shape of {name!r:.80} must have at most {_MAX_SIZES} sizes and fewer than 2**63 weights; "
            f"received {len(shape)} sizes, {shape!r:.80}."
        )
    return math.prod(shape)


def _check_counts(path: Path, name: str, spec: Any, keys: Sequence[str]) -> None:
    weights = _check_shape(path, name, spec)
    for key in keys:
        _check_count(path, f"{key} of {name!r:.80}", spec.get(key), weights)


def _check_count(path: Path, what: str, count: Any, most: int) -> None:
    if type(count) is not int or not 0 <= count <= most:
        raise MaskFileError(f"{path}: {what} must be a count within 0 to {most}; received {count!r:.80}.")


def _check_encoding(path: Path, name: str, encoding: Any, known: Sequence[str]) -> None:
    if encoding not in known:
        wanted = " or ".join(map(repr, known))
        raise MaskFileError(f"{path}: the encoding of {name!r:.80} must be {wanted}; received {encoding!r:.80}.")
