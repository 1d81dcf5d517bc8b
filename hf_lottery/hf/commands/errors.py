"""Errors of a command: one line for what the user can mend, a traceback for a fault of the code."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

_PACKAGE = Path(__file__).parents[2]


def one_line(error: Exception) -> str | None:
    """Return the message of an error in one line, if the user can mend it.

    These are the errors of the disk, the network and missing packages, and those that this library raises itself. An
    error that comes from inside another library is a fault, whose traceback is needed.

    Args:
        error: The error, as it was caught.

    Returns:
        The message; None if the error is a fault.
    """
    ours = Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(_PACKAGE)
    stated = isinstance(error, ValueError | TypeError | RuntimeError)  # others are slips, such as a KeyError
    if isinstance(error, OSError | ImportError) or (ours and stated):
        return " ".join(str(error).split()) or type(error).__name__
    return None


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Make a command end with status 1 and one line on standard error where the user can mend what is wrong.

    Args:
        main: The command.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except Exception as error:
            if (message := one_line(error)) is None:
                raise
            sys.exit(f"{Path(sys.argv[0]).name}: error: {message}")

    return run
