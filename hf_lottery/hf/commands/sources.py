"""The sources of a command: folders, or repositories on the Hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...storage.hub_mixin import HubError, find_folder


def where(args: argparse.Namespace) -> Any:
    """Return the options of ``PlainParser.add_source`` as ``from_pretrained`` takes them."""
    return {key: value for key in ("revision", "subfolder") if (value := getattr(args, key))}


def find_source(source: str, args: argparse.Namespace, files: Sequence[str], optional: Sequence[str] = ()) -> Path:
    """Find the folder of a source.

    Args:
        source: A folder or a repository.
        args: The options of ``PlainParser.add_source``.
        files: Names of the files that must exist.
        optional: Names of files that may be missing.

    Raises:
        FileNotFoundError: It is neither a folder nor a repository.
        HubError: There is no such folder, and the Hub cannot be reached.
    """
    try:
        return find_folder(source, files, optional=optional, **where(args))
    except HubError as error:  # a misspelled folder is a name that a repository could have
        raise HubError(
            f"the source must be a folder or a repository; received {source}, which is no folder here: {error}",
            status=error.status,
        ) from error
