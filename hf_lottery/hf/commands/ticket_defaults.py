"""What a ticket knows of its network and data, so that a command line need not say it again."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...masks.config import CONFIG_NAME, read_config
from ...storage.hub_mixin import find_folder
from ..hub.local_paths import LOCAL
from ..hub.processing import stated_processing
from ..hub.ticket_files import MODEL_CONFIG_NAME
from ..hub.ticket_info import check_info
from ..tasks.data import DataArguments
from .parser import RecipeParser

_PLAIN = (str, int, float, bool)


def ticket_defaults(source: str, given: Collection[str]) -> dict[str, Any]:
    """Return the options of network and data that a ticket states.

    The network is that of the ticket's own configuration, and is processed by the ticket's own tokenizer or image
    processor. A data set that the user names brings its own options, unless the ticket knows no name for its own.

    Args:
        source: The folder of the ticket, or its repository.
        given: The options that the user gave.

    Raises:
        FileNotFoundError: There is no ticket.
        MaskFileError: Its config is damaged.
        ValueError: Its info is malformed.
    """
    folder = find_folder(source, (CONFIG_NAME,), optional=(MODEL_CONFIG_NAME,))
    config = folder / CONFIG_NAME
    if not config.is_file():
        raise FileNotFoundError(f"the ticket must be a folder with {CONFIG_NAME}; received {source}. Check the path.")
    check_info(info := read_config(config).get("info", {}))
    stated = {name: value for name, value in (info.get("settings") or {}).items() if isinstance(value, _PLAIN)}
    settings = {name: value for name, value in stated.items() if value != LOCAL}
    data = [field.name for field in fields(DataArguments)]
    if "dataset_name" in given and "dataset_name" in settings:
        data = []
    found = {name: settings[name] for name in ("task", *data) if name in settings}
    if stated.get("dataset_name") == LOCAL:
        found["dataset_name"] = LOCAL  # which the data refuse, if the user gives no other
    own = bool(stated_processing(read_config(config)))
    base = None if own else settings.get("model_name_or_path")
    if base is not None:
        return {**found, "model_name_or_path": base, "model_revision": settings.get("model_revision", "main")}
    if (folder / MODEL_CONFIG_NAME).is_file():  # of the network itself, wherever its own configuration was
        place = source if not Path(source).is_dir() else str(folder)
        found |= {"config_name": place, **({"processing_name": place} if own else {})}
    return found


def network_defaults(source: str, given: Collection[str]) -> dict[str, Any]:
    """Return the options that a trained network states, in a folder; a repository or another folder states none.

    Args:
        source: The folder of a network or ticket, or a repository.
        given: The options that the user gave.
    """
    if (Path(source) / CONFIG_NAME).is_file():
        return ticket_defaults(source, given)
    return {"config_name": source} if (Path(source) / MODEL_CONFIG_NAME).is_file() else {}


def tell_defaults(parser: RecipeParser) -> None:
    """Log the options that a ticket or a network gave, in the form of a command line."""
    if parser.taken:
        logging.info("from the ticket: %s", " ".join(f"--{name} {value}" for name, value in parser.taken.items()))
