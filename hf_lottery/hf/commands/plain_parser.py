"""PlainParser: the options of a command, without the Hugging Face libraries; mistakes are one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import NoReturn

from .catalogue import CATALOGUE


class PlainParser(argparse.ArgumentParser):
    """A parser of a command of the catalogue.

    Args:
        name: The name of the command.
    """

    def __init__(self, name: str):
        entry = CATALOGUE[name]
        super().__init__(
            prog=f"hf-lottery {name}",
            description=f"{entry.about[0].upper()}{entry.about[1:]}.",
            epilog=entry.epilog(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command line.

        Args:
            arguments: The command line, behind the name of the command.

        Raises:
            SystemExit: With a line on standard error, for what is wrong.
        """
        parsed, unknown = self.parse_known_args(arguments)
        if flags := [word.split("=")[0] for word in unknown if word.startswith("-")]:
            known = [flag for action in self._actions for flag in action.option_strings]
            self.error(f"the options must be known; received {nearest(flags, known)}.")
        if unknown:
            self.error(f"every value must belong to an option; received {unknown[0]!r}.")
        return parsed

    def add_source(self, *names: str) -> None:
        """Add masks, tickets or models to read, and where in a repository they are."""
        for name in names:
            self.add_argument(name, help="A folder, or a repository on the Hub.")
        self.add_argument("--revision", help="Branch, tag or commit on the Hub.")
        self.add_argument("--subfolder", default="", help="Folder inside the repository or folder.")

    def add_json(self) -> None:
        """Add the option that prints JSON."""
        self.add_argument("--json", action="store_true", help=JSON_HELP)

    def error(self, message: str) -> NoReturn:
        """Stop with one line that says what is wrong."""
        self.exit(2, mistake(self.prog, message))


JSON_HELP = "Print one JSON object on standard output, and nothing else; progress goes to standard error."


def mistake(prog: str, message: str) -> str:
    """Return the line that says what is wrong with a command line.

    Args:
        prog: What was called.
        message: What is wrong.
    """
    return f"{prog}: {' '.join(message.split()).rstrip('.')}. See {prog} --help.\n"


def nearest(words: Iterable[str], known: Sequence[str]) -> str:
    """List words, each with the nearest known one.

    Args:
        words: What was received.
        known: What would be right.
    """
    hints = []
    for word in map(str, words):
        near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        hints.append(f"{word} (nearest: {near[0]})" if near else word)
    return ", ".join(hints)
