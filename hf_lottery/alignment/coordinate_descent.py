"""Coordinate descent: give each family of groups in turn its best permutation while the others are held.

Families that no tie connects do not see each other. Each connected part is descended on its own, so that a part of one
family is solved once, whatever the start is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..symmetry.permutation import Permutation, random_permutation
from ..symmetry.spec import PermutationSpec
from .assignment import Family, Solution, Tally, Terms, summed_terms
from .match import Match
from .match_report import GroupMatch, MatchReport
from .objective import Entries, Tie

_ROUNDING = 1e-8  # a gain below this share of the norm may be the rounding of float32 products


def descend(
    spec: PermutationSpec,
    ties: Sequence[Tie],
    among: Sequence[Family],
    *,
    seed: int,
    iterations: int,
    restarts: int = 0,
    inward: bool = True,
    start: Permutation | None = None,
) -> Match:
    """Descend over families: each in turn gets its best entries while the others are held.

    Args:
        spec: The symmetries.
        ties: Where groups of the families meet each other and the groups that stay; their values add up to the
            objective.
        among: The families to solve for.
        seed: Seed of the order of the families, which is another one in every sweep.
        iterations: The most sweeps. A family is solved again only after one that it meets has changed.
        restarts: How many further starts to try for each part in which the start matters. The first is the other one of
            ``start`` and the inward sweep, the others are random.
        inward: Whether the first sweep goes inward from the groups that stay.
        start: Where to start from; the identity by default. Groups that no family holds stay as it has them.

    Returns:
        The permutation, and the report of the groups that were solved for.

    Raises:
        ValueError: ``iterations`` is below 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more; received {iterations}.")
    first = dict(start.entries) if start else {}
    entries, tallies, runs = dict(first), {}, []
    for part in connected(ties, among):
        names = [name for family in part.families for name in family.members]
        best = part.descend(first, inward, seed, iterations)
        for restart in range(1, restarts + 1 if part.start_matters else 1):
            other = first if restart == 1 else first | random_permutation(spec, seed + restart, names).entries
            run = part.descend(other, restart == 1 and not inward, seed + restart, iterations)
            best = max(best, run, key=lambda run: run.objective[-1])
        entries |= {name: best.entries[name] for name in names if name in best.entries}
        tallies |= best.tallies
        runs.append(best)
    sweeps = max((len(run.objective) for run in runs), default=1)
    objective = tuple(sum(run.objective[min(k, len(run.objective) - 1)] for run in runs) for k in range(sweeps))
    permutation = Permutation(spec, entries)
    groups = {name: _match(permutation, name, *tallies[name]) for name in spec.groups if name in tallies}
    return Match(permutation, MatchReport(groups, objective, not any(run.dirty for run in runs)))


def connected(ties: Sequence[Tie], among: Sequence[Family]) -> list[Part]:
    """Divide families into parts that no tie connects, each with its ties."""
    owner = {name: n for n, family in enumerate(among) for name in family.members}
    part_of = list(range(len(among)))

    def root(n: int) -> int:
        while part_of[n] != n:
            part_of[n] = n = part_of[part_of[n]]
        return n

    touched = [sorted({owner[name] for name in tie.groups if name in owner}) for tie in ties]
    for families in touched:
        for n in families[1:]:
            part_of[root(n)] = root(families[0])
    members: dict[int, list[Family]] = defaultdict(list)
    for n, family in enumerate(among):
        members[root(n)].append(family)
    mine: dict[int, list[Tie]] = defaultdict(list)
    for tie, families in zip(ties, touched, strict=True):
        if families:
            mine[root(families[0])].append(tie)
    return [Part(families, mine[n]) for n, families in members.items()]


@dataclass
class Run:
    """One descent over a part.

    Attributes:
        entries: What was found, and what was given for the groups that stay.
        objective: Value of the part's ties at the start and after every sweep.
        dirty: Families that may gain from another visit.
        tallies: Group -> its scores when its family was last solved, and the norm of its ties.
        kept: Family -> ties whose terms are still what they were when it was solved, and the sum of these terms.
    """

    entries: dict[str, np.ndarray]
    objective: list[float]
    dirty: set[int]
    tallies: dict[str, tuple[Tally, float]] = field(default_factory=dict)
    kept: dict[int, tuple[list[int], Terms]] = field(default_factory=dict)


class Part:
    """Families that ties connect, directly or through others, and these ties.

    Attributes:
        families: The families to solve for.
        start_matters: Whether the result can depend on the start: not if one family is solved in a single exact step.
    """

    def __init__(self, families: Sequence[Family], ties: Sequence[Tie]):
        self.families = families
        self._ties = ties
        owner = {name: n for n, family in enumerate(families) for name in family.members}
        self._met = [{owner[name] for name in tie.groups if name in owner} for tie in ties]
        self._of: list[list[int]] = [[] for _ in families]
        self._near: list[set[int]] = [set() for _ in families]
        self._quadratic: set[tuple[int, int]] = set()  # (family, tie)
        for k, tie in enumerate(ties):
            for n in self._met[k]:
                self._of[n].append(k)
                self._near[n] |= self._met[k] - {n}
                if tie.quadratic(families[n]):
                    self._quadratic.add((n, k))
                    self._near[n].add(n)  # its step is that of a linearisation, and may be followed by another
        self._norm = [sum(ties[k].norm for k in of) for of in self._of]
        self.start_matters = len(families) > 1 or bool(self._quadratic)

    def descend(self, start: Entries, inward: bool, seed: int, iterations: int) -> Run:
        """Sweep over the families until nothing improves, first inward if asked for."""
        run = Run(dict(start), [sum(tie.value(start) for tie in self._ties)], set(range(len(self.families))))
        generator = np.random.default_rng(seed)
        if inward:
            self._sweep_inward(run)
        for _ in range(iterations):
            if not run.dirty:
                break
            order = generator.permutation(len(self.families))
            run.objective.append(run.objective[-1] + sum(self._step(n, run) for n in order if n in run.dirty))
        return run

    def _step(self, n: int, run: Run) -> float:
        """Give one family its best entries, and return the gain in the objective (0.0 if it stays)."""
        run.dirty.discard(n)
        family, ties = self.families[n], [self._ties[k] for k in self._of[n]]
        known, terms = run.kept.pop(n, ([], {}))
        new = [k for k in self._of[n] if k not in known]
        terms = summed_terms([terms, self._terms(n, new, run.entries)])
        solution = family.solve(terms)
        self._note(n, solution, run)
        if n in self._near[n]:
            before = sum(tie.value(run.entries) for tie in ties)
            gain = sum(tie.value({**run.entries, **solution.entries}) for tie in ties) - before
        else:
            gain = solution.value - family.value(terms, run.entries)
        if gain <= _ROUNDING * self._norm[n]:
            return 0.0
        run.entries.update(solution.entries)
        run.dirty |= self._near[n]
        for neighbour in self._near[n]:
            run.kept.pop(neighbour, None)
        return gain

    def _sweep_inward(self, run: Run) -> None:
        """Solve the families one after the other, each from what is already settled.

        What was found is dropped if the start was better. A family whose neighbours were all settled needs no other
        visit.
        """
        entries, dirty, value, rest = dict(run.entries), set(), 0.0, set(range(len(self._ties)))
        kept = {}
        for n, usable in self._inward():
            terms = self._terms(n, usable, entries)
            solution = self.families[n].solve(terms)
            entries.update(solution.entries)
            value += solution.value
            rest.difference_update(usable)
            if len(usable) == len(self._of[n]):
                self._note(n, solution, run)
            else:
                dirty.add(n)
                kept[n] = usable, terms
        value += sum(self._ties[k].value(entries) for k in rest)
        better = value - run.objective[0] > _ROUNDING * sum(tie.norm for tie in self._ties)
        if better:
            run.entries, run.kept = entries, kept
        if better or not self.start_matters:
            run.dirty = dirty
        run.objective.append(value if better else run.objective[0])

    def _inward(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the families from the groups that stay inward, each with the ties that are settled but for it.

        At first only the groups that are not solved for are settled, such as inputs and outputs. The next family is the
        one whose units can be compared in most dimensions.
        """
        unsettled = [set(met) for met in self._met]
        waiting, dimensions = list(range(len(self.families))), [0.0] * len(self.families)
        usable: list[list[int]] = [[] for _ in self.families]

        def settle(ties: Sequence[int]) -> None:
            for k in ties:
                if len(unsettled[k]) == 1:
                    (n,) = unsettled[k]
                    if (n, k) not in self._quadratic:
                        usable[n].append(k)
                        dimensions[n] += _dimensions(self._ties[k], self.families[n])

        settle(range(len(self._ties)))
        while waiting:
            n = max(waiting, key=dimensions.__getitem__)
            waiting.remove(n)
            yield n, usable[n]
            for k in self._of[n]:
                unsettled[k].discard(n)
            settle(self._of[n])

    def _terms(self, n: int, ties: Sequence[int], entries: Entries) -> Terms:
        return summed_terms(self._ties[k].terms(self.families[n], entries) for k in ties)

    def _note(self, n: int, solution: Solution, run: Run) -> None:
        """Note how well the groups of a family were matched."""
        ties = [self._ties[k] for k in self._of[n]]
        for name, tally in solution.tallies().items():
            run.tallies[name] = tally, _norm(ties, name)


def measured(ties: Sequence[Tie], among: Sequence[Family], permutation: Permutation) -> dict[str, GroupMatch]:
    """Measure how well a permutation matches the groups of some families, wherever it comes from.

    Args:
        ties: Where groups of the families meet each other and the groups that stay.
        among: The families.
        permutation: The permutation.
    """
    found = {}
    for family in among:
        entries = permutation.entries | {name: permutation.entry(name) for name in family.members}
        near = [tie for tie in ties if not tie.groups.isdisjoint(family.members)]
        solution = family.at(summed_terms(tie.terms(family, entries) for tie in near), entries)
        tallies = solution.tallies().items()
        found |= {name: _match(permutation, name, tally, _norm(near, name)) for name, tally in tallies}
    return found


def _norm(ties: Sequence[Tie], name: str) -> float:
    """Return the largest score that a group can have."""
    return sum(tie.norm * sum(slot.group == name for slot in tie.slots) for tie in ties)


def _match(permutation: Permutation, name: str, tally: Tally, norm: float) -> GroupMatch:
    entry = permutation.entry(name)
    moved = float((entry != np.arange(entry.shape[-1])).mean())
    scores = (tally.matched, tally.identity, tally.random, tally.chance)
    matched, identity, random, chance = (score / (norm or 1.0) for score in scores)
    return GroupMatch(entry.size, matched, identity, random, moved, tally.dead, chance)


def _dimensions(tie: Tie, family: Family) -> float:
    """Return in how many dimensions two units of a family are compared."""
    return tie.elements / math.prod(family.sizes[name] for name in tie.groups.intersection(family.members))
