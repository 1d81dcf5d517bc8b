"""The sign file: a mask file that also holds the signs of the kept weights; docs/mask-format.md specifies it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..masks.file import CONFIG_NAME, MASK_NAME, open_mask, read_entries, stage_mask
from ..masks.mask import Mask
from ..storage.atomic import staged_folder
from ..storage.encoding import MaskFileError, pack_bits, read_bits


def write_signs(folder: str | Path, mask: Mask, signs: Mapping[str, Tensor], medians: Mapping[str, float]) -> None:
    """Write mask and signs into ``folder``, in one step.

    Args:
        folder: The folder; it is created if it does not exist.
        mask: Which weights stay.
        signs: Parameter name -> int8 tensor of -1, 0, +1; 0 where the mask prunes.
        medians: Parameter name -> median magnitude in the network that the signs are from.
    """
    bits: dict[str, Tensor] = {}
    specs: dict[str, dict[str, Any]] = {}
    for name, sign in signs.items():
        kept = sign[mask[name]] if name in mask else sign.flatten()
        zeros = int((kept == 0).sum())
        specs[name] = {"shape": list(sign.shape), "negative": int((kept < 0).sum()), "zeros": zeros}
        if name in medians:
            specs[name]["median"] = medians[name]
        bits[f"{name}.sign"] = pack_bits(kept < 0)
        if zeros:
            bits[f"{name}.zero"] = pack_bits(kept == 0)
    with staged_folder(folder, last=CONFIG_NAME) as stage:
        stage_mask(stage, mask, extra=mask.config_keys(), signs=specs, bits=bits)


def read_signs(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """Read and check a folder that :func:`write_signs` wrote.

    Returns:
        The mask, the signs and the medians, each by parameter name.

    Raises:
        FileNotFoundError: A file is missing.
        MaskFileError: A file is malformed, damaged, newer than this library, or holds no signs.
    """
    path = Path(folder) / MASK_NAME
    with open_mask(folder) as (file, config):
        if config["mask_type"] != "signed":
            raise MaskFileError(f"{path} must hold signs; received a mask without signs. Load it as a Mask.")
        mask, specs = read_entries(file, config, path), config["signs"]
        signs = {name: _read_sign(file, name, spec, mask.get(name), path) for name, spec in specs.items()}
    return mask, signs, {name: float(spec["median"]) for name, spec in specs.items() if "median" in spec}


def _read_sign(file: Any, name: str, spec: Mapping[str, Any], mask: Tensor | None, path: Path) -> Tensor:
    if mask is not None and list(mask.shape) != spec["shape"]:
        received = f"{list(mask.shape)!s:.80} and {spec['shape']!s:.80}"
        raise MaskFileError(f"{path}: {name!r:.80} must have one shape; received {received}.")
    count = math.prod(spec["shape"]) if mask is None else int(mask.sum())
    negative = read_bits(file, f"{name}.sign", count, path)
    zero = read_bits(file, f"{name}.zero", count, path) if spec["zeros"] else torch.zeros(count, dtype=torch.bool)
    if (int(negative.sum()), int(zero.sum())) != (spec["negative"], spec["zeros"]) or (negative & zero).any():
        raise MaskFileError(
            f"{path}: {name!r:.80} must have {spec['negative']} negative and {spec['zeros']} zero signs, no weight "
            f"both; received {int(negative.sum())} and {int(zero.sum())}."
        )
    values = (1 - 2 * negative.to(torch.int8)) * ~zero
    if mask is None:
        return values.reshape(spec["shape"])
    sign = torch.zeros(spec["shape"], dtype=torch.int8)
    sign[mask] = values
    return sign
