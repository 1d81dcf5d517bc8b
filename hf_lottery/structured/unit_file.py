"""The units of a unit mask in the config of its mask file; docs/mask-format.md specifies them."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..storage.encoding import MaskFileError, count_ones, pack_bits, packed_size, unpack_bits

KEY = "units"
_MAX_SIZES = 64


def units_to_json(units: Mapping[str, Tensor], fingerprint: str) -> dict[str, Any]:
    """Describe the units of a mask as JSON.

    Args:
        units: Group name -> bool tensor.
        fingerprint: The fingerprint of the spec that the groups are of.
    """
    groups = {
        name: {
            "shape": list(kept.shape),
            "kept": count_ones(kept),
            "bits": base64.b64encode(pack_bits(kept).numpy().tobytes()).decode(),
        }
        for name, kept in units.items()
    }
    return {"spec": fingerprint, "groups": groups}


def read_units(data: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """Read and check what :func:`units_to_json` wrote.

    Args:
        data: The JSON value.
        path: The file that it is from, for the error messages.

    Returns:
        The units by group, and the fingerprint of their spec.

    Raises:
        MaskFileError: The value is malformed, or the bits are not those that it states.
    """
    groups = data.get("groups") if isinstance(data, dict) else None
    if not isinstance(groups, dict) or not groups or not isinstance(data.get("spec"), str):
        raise MaskFileError(f"{path}: units must have a spec and groups; received {data!r:.80}.")
    return {name: _read_group(path, name, stated) for name, stated in groups.items()}, data["spec"]


def _read_group(path: Path, name: str, stated: Any) -> Tensor:
    shape = stated.get("shape") if isinstance(stated, dict) else None
    if not isinstance(shape, list) or not 0 < len(shape) <= _MAX_SIZES or not all(map(_is_size, shape)):
        raise MaskFileError(f"{path}: the units of {name!r:.80} must have a shape of sizes; received {stated!r:.80}.")
    try:
        packed = torch.tensor(list(base64.b64decode(str(stated.get("bits")), validate=True)), dtype=torch.uint8)
    except ValueError as error:
        raise MaskFileError(f"{path}: the units of {name!r:.80} must have bits in base64; received {error}.") from error
    if len(packed) != packed_size(math.prod(shape)):
        raise MaskFileError(
            f"{path}: the units of {name!r:.80} must have {packed_size(math.prod(shape))} bytes of bits; received "
            f"{len(packed)}."
        )
    kept = unpack_bits(packed, shape)
    counts = kept.reshape(-1, shape[-1]).sum(dim=1)
    if (
        not torch.equal(pack_bits(kept), packed)
        or count_ones(kept) != stated.get("kept")
        or not counts.all()
        or (counts != counts[0]).any()
    ):
        raise MaskFileError(
            f"{path}: the units of {name!r:.80} must keep {stated.get('kept')!r:.20}, as many in every row and no bit "
            f"after the last; received {count_ones(kept)}."
        )
    return kept


def _is_size(size: Any) -> bool:
    return type(size) is int and 0 < size < 2**31
