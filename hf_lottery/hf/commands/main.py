"""The command line ``hf-lottery``: find tickets, train, align and compare them, and look at what is saved."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib import import_module

from ...version import __version__
from .catalogue import CATALOGUE
from .errors import run
from .outcome import Outcome
from .plain_parser import nearest

_ROOT = __name__.partition(".commands")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hf-lottery``.

    Args:
        arguments: The command line. Default: that of this process.

    Returns:
        The exit status: 0, 1 if something is wrong or differs, 2 for a wrong command line, 130 after Ctrl-C. One line
        on standard error says what is wrong.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "--version"):
        text = f"hf-lottery {__version__}" if name == "--version" else _overview()
        return run(name, lambda: lambda _: Outcome({}, text=text), [])
    if name not in CATALOGUE:
        known = nearest([name], [*CATALOGUE])
        print(f"hf-lottery: the command must be known; received {known}. See hf-lottery --help.", file=sys.stderr)
        return 2
    return run(name, functools.partial(_load, name), rest)


def _load(name: str):
    # It is imported here, because the commands that train take seconds to import.
    command = import_module(f"{_ROOT}.{CATALOGUE[name].module}")
    if CATALOGUE[name].plain and "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what is wrong is said in one line
    return command.main


def _overview() -> str:
    width = max(map(len, CATALOGUE)) + 2
    commands = "\n".join(f"  {name:{width}}{entry.about}" for name, entry in CATALOGUE.items())
    return (
        "usage: hf-lottery COMMAND [OPTIONS]\n\n"
        "Find lottery tickets, train them, carry them over to other networks, and look at what is saved.\n\n"
        f"commands, in the order of use:\n{commands}\n\n"
        "hf-lottery COMMAND --help shows the options and examples of a command; hf-lottery --version the version.\n"
        "Sources are folders or repositories on the Hub. With several processes or GPUs:\n"
        "  accelerate launch -m hf_lottery COMMAND ..."
    )
