"""Coordinate descent over families of groups, and the report of how well each group was matched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..symmetry.permutation import Permutation
from ..symmetry.spec import PermutationSpec
from .assignment import Family, Tally
from .objective import Entries, Terms, Tie


@dataclass(frozen=True)
class GroupMatch:
    """How well one group was matched.

    Attributes:
        size: Units, summed over the indices of its parents.
        matched: Score of the permutation found: cosine similarity of the weights that the group lies on, or mean
            correlation of its units; in [-1, 1].
        identity: Score if this group kept its order, all others as found.
        random: Mean score over all orders of this group.
        moved: Share of the units that change place, in [0, 1].
        dead: Units that score zero with every unit of the other network, in the network that has more of them.
    """

    size: int
    matched: float
    identity: float
    random: float
    moved: float
    dead: int


@dataclass(frozen=True)
class MatchReport:
    """What a matching did: ``permutation.report``.

    Attributes:
        groups: Group name -> how well it was matched.
        objective: The sum that was maximised, at the start and after every sweep; never falls.
        converged: Whether the last sweep changed nothing; if not, raise ``iterations``.
    """

    groups: Mapping[str, GroupMatch]
    objective: tuple[float, ...]
    converged: bool

    def __repr__(self) -> str:
        """A table: one line per group."""
        width = max([len("group"), *map(len, self.groups)])
        lines = [f"{'group'.ljust(width)}   size  matched  identity  random  moved  dead"]
        for name, g in self.groups.items():
            scores = f"{g.matched:8.3f}  {g.identity:8.3f}  {g.random:6.3f}  {g.moved:5.0%}  {g.dead:4d}"
            lines.append(f"{name.ljust(width)}  {g.size:5d} {scores}")
        return "\n".join(lines)


def descend(
    spec: PermutationSpec,
    ties: Sequence[Tie],
    among: Sequence[Family],
    *,
    seed: int,
    iterations: int,
    start: Permutation | None = None,
) -> Permutation:
    """Coordinate descent over families: each in turn gets its best entries while the others are held.

    Args:
        spec: The symmetries.
        ties: Where groups meet; their values add up to the objective.
        among: The families to solve for.
        seed: Of the order, another one every sweep.
        iterations: Sweeps at most. A family is solved again only after one that it meets has changed.
        start: Where to start from; the identity by default.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more; received {iterations}.")
    entries = dict(start.entries) if start else {}
    of = [[tie for tie in ties if not tie.groups.isdisjoint(family.members)] for family in among]
    met = [set().union(*(tie.groups for tie in of[n])) for n in range(len(among))]
    near = [{k for k, other in enumerate(among) if not met[n].isdisjoint(other.members)} for n in range(len(among))]
    for n, family in enumerate(among):
        if not any(tie.quadratic(family) for tie in of[n]):
            near[n].discard(n)  # one step is exact
    tallies: dict[str, tuple[Tally, float]] = {}
    objective = [sum(tie.value(entries) for tie in ties)]
    generator, dirty = np.random.default_rng(seed), set(range(len(among)))
    for _ in range(iterations):
        gained = 0.0
        for n in generator.permutation(len(among)):
            if n in dirty:
                dirty.discard(n)
                gain = _step(among[n], of[n], entries, tallies)
                gained, dirty = gained + gain, dirty | near[n] if gain else dirty
        objective.append(objective[-1] + gained)
        if not dirty:
            break
    permutation = Permutation(spec, entries)
    groups = dict(start.report.groups) if start and start.report else {}
    groups |= {name: _match(permutation, name, *tallies[name]) for name in spec.groups if name in tallies}
    permutation.report = MatchReport(groups, tuple(objective), not dirty)
    return permutation


def _step(family: Family, ties: Sequence[Tie], entries: dict[str, np.ndarray], tallies: dict) -> float:
    """Give one family its best entries, in place, and return the gain in the objective (0.0 if it stays)."""
    terms = _terms(family, ties, entries)
    solution = family.solve(terms)
    norm = sum(tie.norm for tie in ties)
    for name, tally in solution.tallies.items():
        tallies[name] = tally, sum(tie.norm * sum(slot.group == name for slot in tie.slots) for tie in ties)
    if any(tie.quadratic(family) for tie in ties):
        before = sum(tie.value(entries) for tie in ties)
        gain = sum(tie.value({**entries, **solution.entries}) for tie in ties) - before
    else:
        gain = solution.value - family.value(terms, entries)
    if gain <= 1e-8 * norm:  # below the rounding of float32 products
        return 0.0
    entries.update(solution.entries)
    return gain


def _match(permutation: Permutation, name: str, tally: Tally, norm: float) -> GroupMatch:
    entry = permutation.entry(name)
    moved = float((entry != np.arange(entry.shape[-1])).mean())
    matched, identity, random = (score / (norm or 1.0) for score in (tally.matched, tally.identity, tally.random))
    return GroupMatch(entry.size, matched, identity, random, moved, tally.dead)


def inward(spec: PermutationSpec, ties: Sequence[Tie], among: Sequence[Family]) -> Permutation:
    """A start for :func:`descend`: families are solved one after the other, each from what is already settled.

    At first only the groups that are not solved for are settled, such as inputs and outputs. The next family is the
    one whose units can be compared in most dimensions.
    """
    entries: dict[str, np.ndarray] = {}
    open_groups = {name for family in among for name in family.members}
    waiting = list(range(len(among)))
    of = [
        [tie for tie in ties if not tie.groups.isdisjoint(family.members) and not tie.quadratic(family)]
        for family in among
    ]
    while waiting:
        usable = {
            n: [tie for tie in of[n] if open_groups.isdisjoint(tie.groups.difference(among[n].members))]
            for n in waiting
        }
        best = max(waiting, key=lambda n: sum(_dimensions(tie, among[n]) for tie in usable[n]))
        waiting.remove(best)
        open_groups.difference_update(among[best].members)
        entries.update(among[best].solve(_terms(among[best], usable[best], entries)).entries)
    return Permutation(spec, entries)


def _dimensions(tie: Tie, family: Family) -> float:
    """In how many dimensions two units of a family are compared."""
    return tie.elements / math.prod(family.sizes[name] for name in tie.groups.intersection(family.members))


def _terms(family: Family, ties: Sequence[Tie], entries: Entries) -> Terms:
    terms: dict[tuple[str, ...], np.ndarray] = {}
    for tie in ties:
        for key, array in tie.terms(family, entries).items():
            terms[key] = terms[key] + array if key in terms else array
    return terms
