"""Coordinate descent: give each family of groups in turn its best permutation while the others are held."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..symmetry.permutation import Permutation
from ..symmetry.spec import PermutationSpec
from .assignment import Family, Tally
from .match import Match
from .match_report import GroupMatch, MatchReport
from .objective import Entries, Terms, Tie


def descend(
    spec: PermutationSpec,
    ties: Sequence[Tie],
    among: Sequence[Family],
    *,
    seed: int,
    iterations: int,
    start: Permutation | None = None,
) -> Match:
    """Descend over families: each in turn gets its best entries while the others are held.

    Args:
        spec: The symmetries.
        ties: Where groups meet; their values add up to the objective.
        among: The families to solve for.
        seed: Seed of the order of the families, which is another one in every sweep.
        iterations: The most sweeps. A family is solved again only after one that it meets has changed.
        start: Where to start from; the identity by default.

    Returns:
        The permutation, and the report of the groups that were solved for.

    Raises:
        ValueError: ``iterations`` is below 1.
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
    groups = {name: _match(permutation, name, *tallies[name]) for name in spec.groups if name in tallies}
    return Match(permutation, MatchReport(groups, tuple(objective), not dirty))


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
    scores = (tally.matched, tally.identity, tally.random, tally.chance)
    matched, identity, random, chance = (score / (norm or 1.0) for score in scores)
    return GroupMatch(entry.size, matched, identity, random, moved, tally.dead, chance)


def inward(spec: PermutationSpec, ties: Sequence[Tie], among: Sequence[Family]) -> Permutation:
    """Make a start for :func:`descend`: solve the families one after the other, each from what is already settled.

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
    """Return in how many dimensions two units of a family are compared."""
    return tie.elements / math.prod(family.sizes[name] for name in tie.groups.intersection(family.members))


def _terms(family: Family, ties: Sequence[Tie], entries: Entries) -> Terms:
    terms: dict[tuple[str, ...], np.ndarray] = {}
    for tie in ties:
        for key, array in tie.terms(family, entries).items():
            terms[key] = terms[key] + array if key in terms else array
    return terms
