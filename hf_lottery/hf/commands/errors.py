"""Errors of a command: one line for what the user can mend, a traceback for a fault of the code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from .catalogue import CATALOGUE
from .outcome import Outcome, plain

_PACKAGE = Path(__file__).parents[2]
INTERRUPTED = 130  # what a shell says of a process that Ctrl-C ended


def one_line(error: Exception) -> str | None:
    """Return the message of an error in one line, if the user can mend it.

    These are the errors of the disk, the network and missing packages, those that this library raises itself, and
    settings that a Trainer refuses when it is made. Any other error from inside another library is a fault, whose
    traceback is needed.

    Args:
        error: The error, as it was caught.

    Returns:
        The message; None if the error is a fault.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = Path(frames[-1].filename).is_relative_to(_PACKAGE)
    stated = isinstance(error, ValueError | TypeError | RuntimeError)  # others are slips, such as a KeyError
    refused = isinstance(error, ValueError | RuntimeError) and any(map(_makes_a_trainer, frames))
    if isinstance(error, OSError | ImportError) or (ours and stated) or refused:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _makes_a_trainer(frame: traceback.FrameSummary) -> bool:
    return frame.name == "__init__" and Path(frame.filename).parts[-2:] == ("transformers", "trainer.py")


def run(name: str, load: Callable[[], Callable[[Sequence[str]], Outcome | None]], arguments: Sequence[str]) -> int:
    """Run a command, and print what it found or, in one line, what is wrong.

    Args:
        name: Its name in the catalogue.
        load: Imports the command: a function that takes the command line. It returns None in all but the first process
            of a launch.
        arguments: The command line; ``--json`` in it is handled here.

    Returns:
        The exit status: 0, 1 if something is wrong or differs, 2 for a wrong command line, 130 after Ctrl-C.
    """
    as_json = "--json" in arguments
    prog = f"hf-lottery {name}"
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            outcome = load()(list(arguments))
        if outcome is None:
            return 0
        if text := json.dumps(plain(outcome.facts)) if as_json else outcome.text:
            print(text, flush=True)
        return outcome.status
    except KeyboardInterrupt:
        return _failed(prog, f"interrupted. {CATALOGUE[name].interrupted}", INTERRUPTED)
    except BrokenPipeError:  # `| head` has read enough; what is left in the buffer must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stopped:
        return _failed(prog, stopped.code, 1) if isinstance(stopped.code, str) else stopped.code or 0
    except Exception as error:
        if (message := one_line(error)) is None:
            raise
        return _failed(prog, message, 1)


def _failed(prog: str, message: str, status: int) -> int:
    print(f"{prog}: {message}", file=sys.stderr)
    return status
