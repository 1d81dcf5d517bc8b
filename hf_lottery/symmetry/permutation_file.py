"""The permutation file: named integer arrays and the spec they are for, as three files in a folder.

``permutation.safetensors`` holds the entries, ``permutation_spec.json`` the spec. ``permutation_config.json`` describes
the entries and states the checksum of the first file and the fingerprint of the spec.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..storage.atomic import staged_folder
from ..storage.checksums import check_sha256
from ..version import __version__
from .errors import SymmetryError

CONFIG_NAME = "permutation_config.json"
ENTRIES_NAME = "permutation.safetensors"
SPEC_NAME = "permutation_spec.json"
FORMAT_VERSION = 1


def write_permutation(
    folder: str | Path, entries: Mapping[str, np.ndarray], fingerprint: str, save_spec: Callable[[Path], None]
) -> None:
    """Write entries and spec into ``folder``, in one step.

    Args:
        folder: Where to write.
        entries: Group name -> integers.
        fingerprint: Fingerprint of the spec.
        save_spec: A function that writes the spec to a path.
    """
    data = save({name: entry.astype(np.int32) for name, entry in entries.items()})
    config = {
        "format_version": FORMAT_VERSION,
        "library_name": "hf_lottery",
        "library_version": __version__,
        "spec_sha256": fingerprint,
        "entries": {name: list(entry.shape) for name, entry in entries.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    with staged_folder(folder, last=CONFIG_NAME) as stage:
        (stage / ENTRIES_NAME).write_bytes(data)
        save_spec(stage / SPEC_NAME)
        (stage / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")


def read_permutation(folder: str | Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read and check what :func:`write_permutation` wrote.

    Returns:
        The fingerprint of the spec, and the entries.

    Raises:
        FileNotFoundError: A file is missing.
        SymmetryError: A file is malformed, damaged, or newer than this library.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, ENTRIES_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"a permutation folder must hold {name}; received {folder}. Check the path, or save it again."
            )
    config = _read_config(folder / CONFIG_NAME)
    return config["spec_sha256"], _read_entries(folder / ENTRIES_NAME, config)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SymmetryError(f"{path} must be JSON; received: {error}.") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise SymmetryError(
            f"{path}: format_version must be {FORMAT_VERSION}; received {version!r}. Install a newer hf_lottery."
        )
    for key, kind in (("spec_sha256", str), ("sha256", str), ("entries", dict)):
        if not isinstance(config.get(key), kind):
            raise SymmetryError(f"{path}: {key} must be a {kind.__name__}; received {config.get(key)!r}.")
    return config


def _read_entries(path: Path, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    check_sha256(path, config["sha256"], CONFIG_NAME, SymmetryError)
    try:
        with safe_open(path, framework="np") as file:
            entries = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise SymmetryError(f"{path} must be a safetensors file; received: {error}.") from error
    if {name: list(entry.shape) for name, entry in entries.items()} != config["entries"]:
        raise SymmetryError(f"{path} must hold the entries that {CONFIG_NAME} names; received {sorted(entries)[:3]}.")
    return entries
