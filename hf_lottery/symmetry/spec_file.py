"""The file of a spec: JSON that is checked key by key, and whose sizes are bounded before anything of them is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..storage.json_files import read_sealed
from .errors import SymmetryError

FORMAT_VERSION = 2
PROOFS = ("full", "fast", "later")
_MOST_POSITIONS = 2**28
_MOST_UNPROVEN = 2**21  # in a file of version 1, without a checksum: a size may be a damaged one
_MOST_PAIRS = 2**20  # of blocks of one tensor, which are all compared
_MOST_PARTS = 32  # parents of a group, axes of a block, leaves of an axis


def read_spec(path: Path) -> dict[str, Any]:
    """Read and check the file of a spec.

    Returns:
        The JSON object, whose groups and tensors have the right types and sizes. Whether they agree with each other is
        for the spec to check.

    Raises:
        SymmetryError: The file is malformed, changed, too large, or newer than this library.
    """
    data = read_sealed(path, version=FORMAT_VERSION, error=SymmetryError)
    groups, tensors = data.get("groups"), data.get("tensors")
    if not isinstance(groups, list) or not isinstance(tensors, dict):
        received = f"{type(groups).__name__} and {type(tensors).__name__}"
        raise SymmetryError(f"{path}: groups must be a list and tensors an object; received {received}.")
    if not isinstance(data.get("network"), dict | None):
        raise SymmetryError(f"{path}: network must be an object or null; received {data['network']!r:.80}.")
    if data.get("proof") not in (None, *PROOFS):
        raise SymmetryError(f"{path}: proof must be one of {PROOFS} or null; received {data['proof']!r:.80}.")
    if not _are_reads(data.get("reads")):
        raise SymmetryError(
            f"{path}: reads must be an object of lists of axes, or null; received {data['reads']!r:.80}."
        )
    if not _are_texts(data.get("mixed")):
        raise SymmetryError(f"{path}: mixed must be an object of texts, or null; received {data['mixed']!r:.80}.")
    for group in groups:
        if not _is_group(group):
            raise SymmetryError(
                f"{path}: a group must have a name, a positive size, parents and frozen; received {group!r:.80}."
            )
    sizes = {group["name"]: group["size"] for group in groups}
    positions = pairs = 0
    for name, blocks in tensors.items():
        for axis in _axes(path, name, blocks):
            positions += _count(path, name, axis, sizes)
        pairs += len(blocks) ** 2
    most = _MOST_UNPROVEN if data["format_version"] == 1 else _MOST_POSITIONS
    if positions > most or pairs > _MOST_PAIRS:
        raise SymmetryError(
            f"{path} must have at most {most:,} positions and {_MOST_PAIRS:,} pairs of blocks; received "
            f"{positions!s:.20} and {pairs:,}. Discover the spec again."
        )
    return data


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, dict)
        and isinstance(group.get("name"), str)
        and _is_place(group.get("size"))
        and group["size"] > 0
        and _are_names(group.get("parents"))
        and "frozen" in group
        and isinstance(group["frozen"], str | None)
    )


def _axes(path: Path, name: str, blocks: Any) -> list[Any]:
    if not isinstance(blocks, list) or any(not isinstance(b, list) or len(b) > _MOST_PARTS for b in blocks):
        raise SymmetryError(f"{path}: {name!r:.80} must be a list of blocks, lists of axes; received {blocks!s:.80}.")
    return [axis for block in blocks for axis in block]


def _count(path: Path, name: str, axis: Any, sizes: Mapping[str, int]) -> int:
    """Check the types of an axis, and return how many positions it has."""
    leaves: Any = axis.get("leaves") if isinstance(axis, dict) else None
    if not _are_names(leaves) or any(leaf not in sizes for leaf in leaves):
        raise SymmetryError(f"{path}: the leaves of {name!r:.80} must be names of groups; received {axis!s:.80}.")
    count = math.prod(sizes[leaf] for leaf in leaves)
    numbers, length = axis.get("positions"), count
    if "positions" not in axis:
        strides = axis.get("strides")
        numbers, length = [axis.get("start"), *strides] if isinstance(strides, list) else None, 1 + len(leaves)
    if not isinstance(numbers, list) or len(numbers) != length or not all(map(_is_place, numbers)):
        raise SymmetryError(
            f"{path}: an axis of {name!r:.80} must have a start and a stride for each leaf, or its positions; "
            f"received {axis!s:.80}."
        )
    return count


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and len(names) <= _MOST_PARTS and all(isinstance(name, str) for name in names)


def _are_reads(reads: Any) -> bool:
    if not isinstance(reads, dict):
        return reads is None
    return all(
        isinstance(axes, list) and len(axes) <= _MOST_PARTS and all(map(_is_place, axes)) for axes in reads.values()
    )


def _are_texts(texts: Any) -> bool:
    return texts is None or (isinstance(texts, dict) and all(isinstance(text, str) for text in texts.values()))


def _is_place(number: Any) -> bool:
    return type(number) is int and abs(number) < 2**31  # so that no sum of them overflows
