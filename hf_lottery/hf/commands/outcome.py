"""Outcome: what a command found, for a person, a script and the shell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command found.

    Attributes:
        facts: In JSON terms, for ``--json``.
        text: For a person; empty if the command has printed it already.
        status: The exit status: 0, or 1 if something is wrong or differs.
    """

    facts: Mapping[str, Any]
    text: str = ""
    status: int = 0


def plain(value: Any) -> Any:
    """Return a value in JSON terms: paths and other objects as text, and numbers that JSON does not have as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | None) else str(value)
