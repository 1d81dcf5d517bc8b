"""The ladders of a sweep: one for every combination of the sparsities, rewind points, widths and lengths asked for.

One search to the last of the sparsities serves them all.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .cells import Ladder


@dataclass(frozen=True, eq=False)
class Point:
    """One ladder of a sweep.

    Attributes:
        name: The swept settings, such as ``"sparsity=0.9, width=2"``; empty without a sweep.
        ladder: The ladder.
    """

    name: str
    ladder: Ladder

    @property
    def stem(self) -> str:
        """The stem of its files, such as ``ladder`` or ``ladder-sparsity-0.9-width-2``."""
        return "-".join(filter(None, ["ladder", *self.name.replace("=", "-").replace(":", "-").split(", ")]))


def points(command: Sequence[str]) -> list[Point]:
    """Make the ladders that a command line asks for, in the order of its sweeps.

    Args:
        command: The command line without the name of the script. Each ladder's own command line is this one with flags
            for the swept settings, so it is checked and hashed as a ladder alone would be.

    Raises:
        SystemExit: The command line is wrong, or the configuration has no width to sweep.
    """
    first = Ladder.of(command)
    which, overrides = first.which, first.model_args.config_overrides
    if which.widths and not hasattr(config := first.model_args.load_config(), "width"):
        sys.exit(f"widths need a configuration that has a width; received one of {config.model_type}, which has none.")
    last = ["--sparsity", str(max(which.sparsities))] if which.sparsities else []
    before = f"{overrides}," if overrides else ""
    axes = [
        [(f"sparsity={value:.4g}", [*last, "--at", str(value)]) for value in which.sparsities or []],
        [(f"rewind={value}", ["--rewind", value]) for value in which.rewinds or []],
        [(f"width={value}", ["--config_overrides", f"{before}width={value}"]) for value in which.widths or []],
        [(f"length={value:g}", ["--row_epochs", str(value)]) for value in which.lengths or []],
    ]
    axes = [axis for axis in axes if axis]
    if not axes:
        return [Point("", first)]
    found = []
    for combination in itertools.product(*axes):
        names, flags = zip(*combination, strict=True)
        own = [*command, *itertools.chain.from_iterable(flags)]
        found.append(Point(", ".join(names), Ladder.of(own, alike=first)))
    return found
