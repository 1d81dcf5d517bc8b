"""Local paths: found and left out of what is shared, as they tell others about one machine and load nothing there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from ...storage.hub_mixin import REPO_ID

LOCAL = "a local path"
# What a path begins with: / ~ ./ ../ C:\ C:/ \\server file: and the same with the other slash.
_BEGINS = re.compile(r"(/|~[\w.-]*[/\\]|~$|\.{1,2}/|\.{1,2}\\\w\w|[A-Za-z]:[/\\]|\\\\\w|file:)")
# The same within a longer text, up to a space, quote or bracket. Fractions, and/or, addresses and patterns are none.
_WITHIN = re.compile(
    r"(?<![\w/\\.~-])(/[\w.]|~[\w.-]*[/\\]|\.{1,2}[/\\]\w\w|[A-Za-z]:[/\\](?!/)|\\\\\w+\\|file:/)[^\s'\",;)\]}>`]*"
)
_FOLDER = re.compile(r"\bcheckpoint:[^\s'\",;)\]}>`]+")  # as options name a trained network, which lies in a folder
_NAMING_KEYS = re.compile(r"name|path|dir|folder|file|dataset|model|checkpoint|source|license|parent|^id$|_id$")


def is_local_path(text: str, *, names: bool = False) -> bool:
    """Whether a text is a path of this machine: it is written like one, or names something that exists.

    Args:
        text: The text, such as ``user/name``, which is a repository unless there is such a folder or file.
        names: Whether the text must name a folder, file or repository. Then even one word may be a folder that exists,
            and what has a slash and is no repository is a path.
    """
    if _BEGINS.match(text):
        return True
    if "://" in text or not (names or "/" in text or "\\" in text):
        return False
    return _exists(text) or (names and ("/" in text or "\\" in text) and not REPO_ID.fullmatch(text))


def without_local_paths(value: Any, *, names: bool = False) -> Any:
    """Return JSON values in which every local path is replaced by the words ``a local path``.

    Args:
        value: Texts, numbers, lists and mappings. The keys of mappings stay as they are.
        names: Whether texts name folders, files or repositories; under keys such as ``dataset_name``, they do.
    """
    if isinstance(value, str):
        told = _WITHIN.sub(LOCAL, _FOLDER.sub(f"checkpoint:{LOCAL}", value))
        return LOCAL if is_local_path(value, names=names) else told
    if isinstance(value, Path):
        return LOCAL
    if isinstance(value, Mapping):
        return {
            key: without_local_paths(item, names=bool(_NAMING_KEYS.search(str(key)))) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)([without_local_paths(item, names=names) for item in value])
    return value


def clean_config_(config: PreTrainedConfig | GenerationConfig) -> None:
    """Replace the local paths in a model's configuration, and in those inside it, or in its generation config."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            clean_config_(value)
        elif isinstance(value, str | list | tuple):
            vars(config)[name] = without_local_paths(value)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for the file system, or with a null byte
        return False
