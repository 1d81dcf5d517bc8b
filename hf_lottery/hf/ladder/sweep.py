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
    last = ["--sparsity", repr(max(which.sparsities))] if which.sparsities else []
    before = f"{overrides}," if overrides else ""
    axes: list[list[tuple[str, list[str]]]] = [
        [(f"rewind={value}", ["--rewind", value]) for value in which.rewinds or []],
        [(f"width={value}", ["--config_overrides", f"{before}width={value}"]) for value in which.widths or []],
        [(f"length={value:g}", ["--row_epochs", str(value)]) for value in which.lengths or []],
    ]
    found = []
    swept = itertools.product(*(axis for axis in axes if axis))
    for at, named in itertools.product(which.sparsities or [None], list(swept)):
        own = [*command, *last, *itertools.chain.from_iterable(flags for _, flags in named)]
        ladder = Ladder.of(own, alike=first)
        ladder.which.at = ladder.which.at if at is None else at
        names = [name for name, _ in named]
        if at is not None:
            names.insert(0, f"sparsity={ladder.args.get_sparsities()[ladder.level]:.4g}")
        found.append(Point(", ".join(names), ladder))
    if len({point.name for point in found}) < len(found):
        raise ValueError(
            f"sparsities must be near different levels of the search; received {which.sparsities}, of which two have "
            f"the same. The levels are {', '.join(f'{level:.4g}' for level in first.args.get_sparsities()[1:])}."
        )
    return found
