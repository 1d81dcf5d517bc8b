"""What the main process does for all: each process gets its result, or hears of its error instead of waiting."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TypeVar, cast

from ...networks.processes import gathered

T = TypeVar("T")


def on_main(action: Callable[[], T], *, main: bool) -> T:
    """Call a function on the main process, and return its result, or raise its error, on every process.

    Args:
        action: The function. What it returns is sent to the other processes, so it should be small.
        main: Whether this is the main process. Every process must call this.
    """
    result: T | None = None
    error: Exception | None = None
    if main:
        try:
            result = action()
        except Exception as caught:
            error = caught
    found, sent = gathered((result, _as_sent(error)))[0]
    if error := error or sent:
        raise error
    return cast(T, found)


def _as_sent(error: Exception | None) -> Exception | None:
    """Return the error, or one with the same text if it cannot be sent to another process."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(str(error))
