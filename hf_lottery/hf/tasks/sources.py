"""Sources: a quick check of what a name on the command line stands for, before anything is loaded.

The loaders of transformers and datasets take every name for one of the Hub, and ask for it again and again, so that a
misspelled path costs minutes. Here the disk is asked first, and the Hub once.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ...storage.hub_mixin import REPO_ID, HubError
from ..hub.errors import absence, hub_errors
from ..hub.transfer import fetch

_FILES = (".json", ".yaml", ".yml", ".safetensors")
_CONFIG = "config.json"


def check_model(name: str, option: str, *, revision: str = "main") -> None:
    """Check that a configuration or a model exists.

    Args:
        name: A file, a folder, or the id of a repository on the Hub.
        option: The option that has this value, for the error message.
        revision: Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: It exists neither here nor on the Hub.
        HubError: The Hub cannot be reached, and the configuration is not in its cache.
    """
    path = Path(name)
    if path.is_dir() and not (path / _CONFIG).is_file():
        raise FileNotFoundError(f"{option} must be a folder with a {_CONFIG}; received {name!r}, which has none.")
    if not path.exists():
        ask_hub(name, f"{option} must be a file, a folder, or a model on the Hub", files=(_CONFIG,), revision=revision)


def check_id(name: str, must: str) -> None:
    """Check that a name that is not on the disk can be one of the Hub.

    Args:
        name: The name.
        must: What holds of a right name, for the error message.

    Raises:
        FileNotFoundError: It is a path.
    """
    if Path(name).suffix in _FILES or not REPO_ID.fullmatch(name) or ".." in Path(name).parts:
        raise FileNotFoundError(f"{must}; received {name!r}, which does not exist. {_near(name)}")


def ask_hub(name: str, must: str, *, files: Sequence[str] = (), revision: str | None = None) -> None:
    """Check that a name that is not on the disk is a repository of the Hub.

    Args:
        name: The name.
        must: What holds of a right name, for the error message.
        files: What the repository must hold.
        revision: Branch, tag or commit.

    Raises:
        FileNotFoundError: There is no such repository.
        HubError: The Hub cannot be reached, and the repository is not in its cache.
    """
    check_id(name, must)
    here = f"{must}; received {name!r}, which is not on this disk. {_near(name)}"
    try:
        fetch(name, files, optional=() if files else (_CONFIG,), revision=revision)
    except HubError as error:
        raise HubError(f"{here} {_sentence(error)}", status=error.status) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{here} {_sentence(error)}") from error


def _near(name: str) -> str:
    """Say which files are near a path that does not exist."""
    folder = Path(name).parent
    beside = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(Path(name).name, beside, n=3)
    return f"Near names in {folder}: {', '.join(near)}." if near else "Check the name."


def check_data_set(name: str, known: list[str], cache: Any) -> None:
    """Check that a data set exists on the Hub, unless it was downloaded before.

    Args:
        name: The id of the data set.
        known: Names of data sets that need no Hub.
        cache: The folder where ``datasets`` keeps what it downloaded.

    Raises:
        ValueError: There is no such data set.
        HubError: The Hub cannot be reached.
    """
    if (Path(cache) / name.replace("/", "___")).is_dir():
        return
    near = difflib.get_close_matches(name, known, n=1)
    must = f"dataset_name must be {', '.join(known)}, a folder with data, or a Hub id; received {name!r}." + (
        f" Did you mean {near[0]}?" if near else ""
    )
    try:
        with hub_errors(f"find the data set {name}"):
            HfApi().dataset_info(name, timeout=10)
    except HubError as error:
        if absence(error):
            raise ValueError(f"{must} The Hub has no such data set, or hides it from you.") from error
        raise HubError(f"{must} {_sentence(error)}", status=error.status) from error


def _sentence(error: Exception) -> str:
    """The message of an error, to be put behind a full stop."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}"
