"""MatchReport: how well each group of two networks was matched, in memory and as a JSON file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..networks.display import escaped, html_table, text_table
from ..storage.checksums import check_sha256
from ..storage.json_files import read_sealed, seal_json
from ..symmetry.errors import SymmetryError
from ..symmetry.permutation import Permutation
from ..symmetry.permutation_file import ENTRIES_NAME
from ..symmetry.structure import SHOWN
from ..version import __version__

REPORT_NAME = "match_report.json"
FORMAT_VERSION = 2
_HEADER = ("group", "size", "matched", "identity", "random", "chance", "moved", "dead")


@dataclass(frozen=True)
class GroupMatch:
    """How well one group was matched.

    Attributes:
        size: Units, summed over the indices of the group's parents.
        matched: Score of the permutation found: cosine similarity of the weights that the group lies on, or mean
            correlation of its units; in [-1, 1].
        identity: Score if this group kept its order and all others moved as found.
        random: Mean score over all orders of this group.
        moved: Share of the units that change place, in [0, 1].
        dead: Units that score zero with every unit of the other network, counted in the network that has more of them.
        chance: What units would score that have nothing to do with each other: the best of as many scores as there are
            units, drawn from all scores of the group. ``matched`` is always above ``random``, since it is a maximum;
            above ``chance`` it says that units correspond. None in reports that older versions wrote.
    """

    size: int
    matched: float
    identity: float
    random: float
    moved: float
    dead: int
    chance: float | None = None


@dataclass(frozen=True, repr=False)
class MatchReport:
    """How well two networks were matched; prints as a table with one line per group.

    Attributes:
        groups: Group name -> how well it was matched.
        objective: What was maximised, at the start and after every sweep; it never falls. A learned matching maximises
            minus the loss in the middle of the line, and has a value for every pass over its batches.
        converged: Whether the last sweep or pass changed nothing. If not, raise ``iterations`` or ``epochs``.
        left_out: Name of each residual stream that kept its order -> why.
    """

    groups: Mapping[str, GroupMatch]
    objective: tuple[float, ...]
    converged: bool
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def beats_chance(self) -> bool:
        """Whether more than half of the units are in groups that matched better than chance, or none can be told."""
        told = [g for g in self.groups.values() if g.chance is not None and (g.matched or g.chance)]
        better = sum(g.size for g in told if g.matched > (g.chance or 0.0))
        return not told or 2 * better > sum(g.size for g in told)

    def __repr__(self) -> str:
        """Return a table with one line per group, and one for each that was left out; a long table is cut."""
        return "\n".join([self._title(), text_table(_HEADER, self._rows(), limit=SHOWN), *self._left_out()])

    def _repr_html_(self) -> str:
        table = html_table(_HEADER, self._rows(), limit=SHOWN)
        return "\n".join([f"<p>{self._title()}</p>", table, *(f"<p>{escaped(line)}</p>" for line in self._left_out())])

    def _left_out(self) -> list[str]:
        return [f"left out: {name} ({why})" for name, why in self.left_out.items()]

    def _title(self) -> str:
        end = "converged" if self.converged else "not converged"
        groups, sweeps = len(self.groups), len(self.objective) - 1
        return f"MatchReport(groups: {groups}, sweeps: {sweeps}, {end})"

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                name,
                str(g.size),
                *("-" if x is None else f"{x:.3f}" for x in (g.matched, g.identity, g.random, g.chance)),
                f"{g.moved:.0%}",
                str(g.dead),
            )
            for name, g in self.groups.items()
        ]


def write_match_report(folder: Path, report: MatchReport) -> None:
    """Write a report into a folder that already holds the files of its permutation."""
    data = {
        "format_version": FORMAT_VERSION,
        "library_name": "hf_lottery",
        "library_version": __version__,
        "permutation_sha256": hashlib.sha256((folder / ENTRIES_NAME).read_bytes()).hexdigest(),
        "converged": report.converged,
        "objective": list(report.objective),
        "groups": {name: asdict(group) for name, group in report.groups.items()},
        "left_out": dict(report.left_out),
    }
    (folder / REPORT_NAME).write_bytes(seal_json(data, what=REPORT_NAME))


def read_match_report(folder: Path, permutation: Permutation) -> MatchReport:
    """Read and check what :func:`write_match_report` wrote.

    Args:
        folder: The folder of a match.
        permutation: The permutation that was loaded from the same folder.

    Raises:
        FileNotFoundError: The folder holds no report.
        SymmetryError: The report is malformed, changed, too large, newer than this library, or of another permutation.
    """
    path = folder / REPORT_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"the folder of a match must hold {REPORT_NAME}; received {folder}. "
            "If it holds a permutation alone, load it with Permutation.from_pretrained."
        )
    data = read_sealed(path, version=FORMAT_VERSION, error=SymmetryError)
    kinds = {"permutation_sha256": str, "converged": bool, "objective": list, "groups": dict}
    for key, kind in kinds.items():
        if not isinstance(data.get(key), kind):
            raise SymmetryError(f"{path}: {key} must be a {kind.__name__}; received {data.get(key)!s:.80}.")
    check_sha256(folder / ENTRIES_NAME, data["permutation_sha256"], REPORT_NAME, SymmetryError)
    if not data["objective"] or not all(map(_is_number, data["objective"])):
        raise SymmetryError(f"{path}: objective must hold finite numbers; received {data['objective']!s:.80}.")
    groups = {name: _read_group(path, name, group, permutation) for name, group in data["groups"].items()}
    left_out = data.get("left_out", {})
    if not isinstance(left_out, dict) or not all(isinstance(why, str) for why in left_out.values()):
        raise SymmetryError(f"{path}: left_out must hold texts; received {left_out!s:.80}.")
    return MatchReport(groups, tuple(map(float, data["objective"])), data["converged"], left_out)


def _read_group(path: Path, name: str, data: Any, permutation: Permutation) -> GroupMatch:
    if name not in permutation.spec.groups:
        raise SymmetryError(f"{path}: a group must be in the spec; received {name!r:.80}.")
    size = permutation.entry(name).size
    names = [one.name for one in fields(GroupMatch)]
    good = (
        isinstance(data, dict)
        and sorted({"chance": None, **data}) == sorted(names)
        and all(_is_number(value) or (key == "chance" and value is None) for key, value in data.items())
        and data["size"] == size
        and 0 <= data["moved"] <= 1
        and data["dead"] in range(size + 1)
    )
    if not good:
        raise SymmetryError(
            f"{path}: group {name!r:.80} must have the finite numbers {', '.join(names)}, a size of {size}, and moved "
            f"and dead within their bounds; received {data!s:.200}."
        )
    scores = {key: float(data[key]) for key in ("matched", "identity", "random", "moved")}
    if data.get("chance") is not None:
        scores["chance"] = float(data["chance"])
    return GroupMatch(size=size, dead=int(data["dead"]), **scores)


def _is_number(value: Any) -> bool:
    """Tell whether a value of a JSON file is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
