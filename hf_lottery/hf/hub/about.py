"""What a ticket says of how it was made: the command, the settings that were changed, versions, date and hardware."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer_pt_utils import AcceleratorConfig

from ...version import __version__


def changed_settings(settings: Mapping[str, Any], *kinds: type) -> list[str]:
    """Return the names of the settings whose values are not the defaults of the dataclasses that they are of.

    Args:
        settings: Values by name. Names that no dataclass has are left out.
        kinds: The dataclasses.
    """
    changed = []
    for field in (field for kind in kinds for field in fields(kind)):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = getattr(default, "value", default)  # of an enumeration, settings have the value
        if not _is_default(settings.get(field.name, default), default):
            changed.append(field.name)
    return changed


def _is_default(value: Any, default: Any) -> bool:
    if default is None and isinstance(value, Mapping):  # accelerate's own settings, or a part of them
        return value.items() <= AcceleratorConfig().to_dict().items()
    return value == default or (default is None and value is False)  # a switch that was left alone


def command_line(arguments: Sequence[str]) -> list[str]:
    """Return a command line as a ticket may show it: without the folder of the program, and without tokens."""
    shown = [Path(arguments[0]).name]
    for argument in arguments[1:]:
        flag, equals, value = argument.partition("=")
        shown += [flag, value] if equals and flag.startswith("--") else [argument]
    for at, flag in enumerate(shown[:-1]):
        if flag.startswith("--") and flag.endswith("token"):
            shown[at + 1] = "..."
    return shown


def surroundings(*, processes: int = 1) -> dict[str, Any]:
    """Return ``versions``, ``date`` and ``hardware`` of this moment.

    Args:
        processes: How many processes train together.
    """
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        hardware = f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    return {
        "versions": {
            "hf_lottery": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": hardware if processes == 1 else f"{processes} processes, each {hardware}",
    }
