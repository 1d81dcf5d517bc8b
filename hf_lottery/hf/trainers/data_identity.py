"""What identifies a data set: its own fingerprint, or its length and a hash of some of its samples."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ...networks.generators import kept_generators

_SAMPLES = 16


class _UnknownContent(Exception):
    """A sample holds something whose content cannot be read."""


class _Hashes(Dataset):
    """The hash of some samples, read with one seed or another."""

    def __init__(self, data: Any):
        self._data = data

    def __getitem__(self, seed: int) -> dict[str, str]:
        try:
            return {"samples": _hash_samples(self._data, seed)}
        except _UnknownContent as error:
            return {"unknown": str(error)}

    def __len__(self) -> int:
        return 2


def identify_data(data: Any, *, workers: int = 0) -> dict[str, Any] | None:
    """Return what identifies a data set, as JSON values.

    A data set of ``datasets`` has a fingerprint, which follows from its files and everything that was done to it. Of
    any other, 16 samples are read, spread from the first to the last, twice. Random generators are as before
    afterwards.

    Args:
        data: The data set; None if there is none.
        workers: How many processes load it in training. If there are any, one such process reads the samples: a file
            that is opened at the first read must not be opened here, since all workers would share its place.

    Returns:
        ``class``, ``length`` and either ``fingerprint``, ``samples`` (a hash), or ``unknown``: why there is neither.
    """
    if data is None:
        return None
    known: dict[str, Any] = {"class": type(data).__name__}
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return {**known, "unknown": "it is a stream"}
    known["length"] = len(data)
    if (fingerprint := _own_fingerprint(data)) is not None:
        return {**known, "fingerprint": fingerprint}
    # Two reads with different seeds tell an augmentation, and the first is the same in every process.
    own = torch.Generator()  # or the loader would draw from torch's
    first, second = DataLoader(_Hashes(data), batch_size=None, num_workers=min(workers, 1), generator=own)
    return {**known, **first} if first == second else {**known, "unknown": "its samples differ at every read"}


def _own_fingerprint(data: Any) -> str | None:
    """Return the fingerprint that ``datasets`` keeps, for which it has no public name."""
    theirs = any(kind.__module__.partition(".")[0] == "datasets" for kind in type(data).__mro__)
    found = getattr(data, "_fingerprint", None) if theirs else None
    return found if isinstance(found, str) else None


def _hash_samples(data: Any, seed: int) -> str:
    digest, length = hashlib.sha256(), len(data)
    count = min(length, _SAMPLES)
    with _seeded(seed):
        for number in range(count):
            for piece in _pieces(data[number * (length - 1) // max(count - 1, 1)]):
                digest.update(len(piece).to_bytes(8, "little"))
                digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random generators of the CPU inside a block, and put them back."""
    with kept_generators(accelerators=False):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        yield


def _pieces(value: Any) -> Iterator[bytes]:
    """Yield bytes that differ for samples that differ.

    Raises:
        _UnknownContent: A value is of a type that is not known here.
    """
    if isinstance(value, bytes | bytearray):
        yield from (b"bytes", bytes(value))
    elif value is None or isinstance(value, bool | int | float | complex | str):
        yield f"{type(value).__name__} {value!r}".encode()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key, item in value.items():
            yield from _pieces(key)
            yield from _pieces(item)
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, Tensor) and value.layout == torch.strided:
        yield f"tensor {value.dtype} {list(value.shape)}".encode()
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        yield plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif not isinstance(value, Tensor) and (hasattr(value, "__array__") or hasattr(value, "__array_interface__")):
        yield from _array_pieces(np.asarray(value))
    elif is_dataclass(value):
        yield from _pieces({field.name: getattr(value, field.name) for field in fields(value)})
    else:
        raise _UnknownContent(f"its samples hold a {type(value).__name__}, which cannot be compared")


def _array_pieces(array: np.ndarray) -> Iterator[bytes]:
    yield f"array {array.dtype} {array.shape}".encode()
    if array.dtype.hasobject:
        yield from _pieces(array.tolist())
    else:
        yield np.ascontiguousarray(array).tobytes()
