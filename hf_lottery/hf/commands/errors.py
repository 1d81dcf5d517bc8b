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
# Where a Trainer looks at its settings: function -> file.
_SETTLING = {
    "__init__": "trainer.py",
    "create_optimizer": "trainer.py",
    "create_scheduler": "trainer.py",
    "_get_dataloader": "trainer.py",
    "activation_checkpointing_enable": "modeling_utils.py",
    "gradient_checkpointing_enable": "modeling_utils.py",  # before transformers 5.20
    "activate_neftune": os.path.join("integrations", "neftune.py"),
}
INTERRUPTED = 130  # what a shell says of a process that Ctrl-C ended


def one_line(error: Exception) -> str | None:
    """Return the message of an error in one line, if the user can mend it.

    These are the errors of the disk, the network and missing packages, those that this library raises itself, and
    settings that a Trainer refuses. Any other error from inside another library is a fault, whose traceback is needed.

    Args:
        error: The error, as it was caught.

    Returns:
        The message; None if the error is a fault.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = Path(frames[-1].filename).is_relative_to(_PACKAGE)
    stated = isinstance(error, ValueError | TypeError | RuntimeError)  # others are slips, such as a KeyError
    if isinstance(error, OSError | ImportError) or (stated and (ours or any(map(_settles, frames)))):
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _settles(frame: traceback.FrameSummary) -> bool:
    """Whether a function of transformers looks at its settings."""
    file = _SETTLING.get(frame.name)
    return file is not None and frame.filename.endswith(f"{os.sep}{os.path.join('transformers', file)}")


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
