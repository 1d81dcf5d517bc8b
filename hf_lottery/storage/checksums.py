"""Checksums: check that files are those that were written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .json_files import read_sealed, seal_json

_CHUNK = 1 << 20
_VERSION = 2  # from which on a file without its checksum is refused


class DamagedFileError(ValueError):
    """A file is missing, or is not the one that was written."""


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, which is read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def check_sha256(path: Path, stated: str, stated_in: str, error: type[ValueError]) -> None:
    """Raise ``error`` unless the file has the checksum that the config ``stated_in`` gives."""
    digest = sha256_of(path)
    if digest != stated:
        raise error(
            f"{path} must have the sha256 that {stated_in} states; received {digest}. "
            "The file is truncated, damaged or from another save: save or download it again."
        )


def hash_files(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its path seen from ``folder``."""
    return {Path(os.path.relpath(file, folder)).as_posix(): sha256_of(file) for file in sorted(files)}


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Check that files are those that :func:`hash_files` has seen.

    Raises:
        DamagedFileError: A file is missing or has other bytes.
    """
    for name, stated in hashes.items():
        path = Path(os.path.normpath(folder / name))
        if not path.is_file():
            raise DamagedFileError(_message(path, "no such file"))
        if (found := sha256_of(path)) != stated:
            raise DamagedFileError(_message(path, f"other bytes, with sha256 {found[:16]}... instead of {stated[:16]}"))


def sealed_record(values: Mapping[str, Any]) -> bytes:
    """Return the text of a JSON file for :func:`read_record`, with its own checksum."""
    return seal_json({"format_version": _VERSION, **values}, what="a record")


def read_record(path: Path) -> dict[str, Any]:
    """Read the values of a file of :func:`sealed_record`.

    Raises:
        DamagedFileError: The file is missing or damaged.
    """
    if not path.is_file():
        raise DamagedFileError(_message(path, "no such file"))
    return read_sealed(path, version=_VERSION, error=DamagedFileError)


def _message(path: Path, received: str) -> str:
    return f"{path} must be as it was written; received {received}. Restore it from a copy, or start in another folder."
