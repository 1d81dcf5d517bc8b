"""Checksums: check that a file is the one that its config describes."""

from __future__ import annotations

import hashlib
from pathlib import Path


def check_sha256(path: Path, stated: str, stated_in: str, error: type[ValueError]) -> None:
    """Raise ``error`` unless the file has the checksum that the config ``stated_in`` gives."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != stated:
        raise error(
            f"{path} must have the sha256 that {stated_in} states; received {digest}. "
            "The file is truncated, damaged or from another save: save or download it again."
        )
