"""The permutation file: named integer arrays and the spec they are for, as three files in a folder.

``permutation.safetensors`` holds the entries, ``permutation_spec.json`` the spec. ``permutation_config.json`` describes
the entries and states the checksum of the first file and the fingerprint of the spec.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..storage.atomic import staged_folder
from ..storage.checksums import check_sha256
from ..storage.json_files import read_sealed, seal_json
from ..version import __version__
from .errors import SymmetryError

CONFIG_NAME = "permutation_config.json"
ENTRIES_NAME = "permutation.safetensors"
SPEC_NAME = "permutation_spec.json"
FORMAT_VERSION = 2


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
        (stage / CONFIG_NAME).write_bytes(seal_json(config, what=CONFIG_NAME))


def read_permutation(folder: str | Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read and check what :func:`write_permutation` wrote.

    Returns:
        The fingerprint of the spec, and the entries.

    Raises:
        FileNotFoundError: A file is missing.
        SymmetryError: A file is malformed, changed, too large, or newer than this library.
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
    config = read_sealed(path, version=FORMAT_VERSION, error=SymmetryError)
    for key, kind in (("spec_sha256", str), ("sha256", str), ("entries", dict)):
        if not isinstance(config.get(key), kind):
            raise SymmetryError(f"{path}: {key} must be a {kind.__name__}; received {config.get(key)!r:.80}.")
    return config


def _read_entries(path: Path, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    check_sha256(path, config["sha256"], CONFIG_NAME, SymmetryError)
    entries = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                stored = file.get_slice(name)
                if (stored.get_dtype(), stored.get_shape()) != ("I32", config["entries"].get(name)):
                    raise SymmetryError(
                        f"{path}: the entry {name!r:.80} must be int32 and of the shape that {CONFIG_NAME} states; "
                        f"received {stored.get_dtype()} {stored.get_shape()!s:.80}."
                    )
                entries[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise SymmetryError(f"{path} must be a safetensors file; received: {error!s:.200}.") from error
    if entries.keys() != config["entries"].keys():
        received = sorted(entries)[:3]
        raise SymmetryError(f"{path} must hold the entries that {CONFIG_NAME} names; received {received!s:.200}.")
    return entries
