"""The tokenizer or image processor of a ticket: files that travel with it as they are, and are never run."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers

from ...storage.checksums import check_sha256
from ...storage.encoding import MaskFileError
from .local_paths import is_local_path

# What the tokenizers, image processors and chat templates of transformers are saved in: data, neither code nor pickles.
SUFFIXES = (".json", ".txt", ".model", ".jinja", ".spm", ".codes", ".bpe", ".vocab", ".tiktoken", ".tokenizer")
_NAME = re.compile(rf"[A-Za-z0-9][\w.-]{{0,127}}({'|'.join(map(re.escape, SUFFIXES))})")
# Files of the ticket and of a model, in any case: some file systems take Config.json for config.json.
_NOT_ITS_OWN = re.compile(r"(config|generation_config|mask_config|adapter_config)\.json|(model|mask|rewind)\..*", re.I)
_NAMES_A_PLACE = re.compile(r"path|file|dir|folder")


def processing_files(thing: Any) -> dict[str, bytes]:
    """Return the files that a tokenizer or image processor writes, by name.

    Args:
        thing: What a Trainer takes as ``processing_class``. None, and what has no ``save_pretrained``, has no files.

    Raises:
        TypeError: It is the name of one, or its files.
    """
    if isinstance(thing, str | Path | Mapping):
        raise TypeError(
            f"processing must be a tokenizer or image processor; received {type(thing).__name__}. Load it with "
            "from_pretrained before."
        )
    if not hasattr(thing, "save_pretrained"):
        return {}
    with TemporaryDirectory() as folder:
        thing.save_pretrained(folder)
        written = sorted(Path(folder).iterdir())
        kept = {file.name: file.read_bytes() for file in written if file.is_file() and _is_allowed(file.name)}
    if left := [file.name for file in written if file.name not in kept]:
        warnings.warn(
            f"{type(thing).__name__} also writes {', '.join(left)}, which is left out: only plain files that end in "
            f"{', '.join(SUFFIXES)} are kept with a mask. Save it beside the ticket with save_pretrained.",
            stacklevel=2,
        )
    return kept


def saved_processing(folder: Path) -> dict[str, bytes]:
    """Return the files of the tokenizer or image processor that lies in the folder of a model, by name.

    One that transformers cannot load, or only with code of the repository, is left out with a warning.
    """
    files: dict[str, bytes] = {}
    for kind in loaders({file.name: b"" for file in folder.iterdir()}):
        try:
            thing = getattr(transformers, kind).from_pretrained(str(folder), trust_remote_code=False)
        except Exception as error:  # what such files can do wrong has no end
            warnings.warn(
                f"the files of {kind} in {folder} are left out, as it does not load: {' '.join(str(error).split())}",
                stacklevel=2,
            )
        else:
            files |= processing_files(thing)
    return files


def stage_processing(stage: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """Write the files, and return the SHA-256 of each.

    Raises:
        ValueError: A name is not that of a file of settings.
    """
    for name, content in files.items():
        if not _is_allowed(name):
            raise ValueError(
                f"processing must hold files of a tokenizer or image processor; received {name!r:.80}. Leave it out."
            )
        (stage / name).write_bytes(content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def stated_processing(config: Mapping[str, Any]) -> dict[str, str]:
    """Return name and SHA-256 of the files that a ticket's config states.

    Raises:
        MaskFileError: They are not names with checksums.
    """
    stated = config.get("processing", {})
    if not isinstance(stated, dict) or not all(_is_allowed(k) and isinstance(v, str) for k, v in stated.items()):
        raise MaskFileError(
            f"processing must map files of a tokenizer or image processor to checksums; received {stated!r:.80}."
        )
    return stated


def read_processing(folder: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Read the files that a ticket's config states.

    Raises:
        FileNotFoundError: One is missing.
        MaskFileError: One has other bytes.
    """
    files = {}
    for name, digest in stated_processing(config).items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"the ticket must hold {name}; received {folder} without it. Save it again.")
        check_sha256(folder / name, digest, "mask_config.json", MaskFileError)
        files[name] = (folder / name).read_bytes()
    return files


def loaders(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the Auto class that reads such files, and the name of a variable for what it gives."""
    if "processor_config.json" in files:
        return {"AutoProcessor": "processor"}
    found = {"tokenizer_config.json": "AutoTokenizer", "preprocessor_config.json": "AutoImageProcessor"}
    words = {"AutoTokenizer": "tokenizer", "AutoImageProcessor": "processor"}
    return {kind: words[kind] for name, kind in found.items() if name in files}


def without_places(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files without settings that name a folder or file of this machine."""
    cleaned = dict(files)
    for name in files.keys() & {"tokenizer_config.json", "preprocessor_config.json", "processor_config.json"}:
        settings = json.loads(files[name])
        kept = {
            key: value
            for key, value in settings.items()
            if not (_NAMES_A_PLACE.search(key) and isinstance(value, str) and is_local_path(value, names=True))
        }
        if kept != settings:
            cleaned[name] = (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()
    return cleaned


def _is_allowed(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and not _NOT_ITS_OWN.fullmatch(name)
