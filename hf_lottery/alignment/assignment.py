"""Nested assignment: the best permutation of a group together with the groups inside it, exactly.

For a flat group this is one linear assignment problem. For heads with inner dimensions it is one inner problem per
pair of heads, whose values feed one outer problem; deeper nesting recurses. Two groups inside the same parent that
meet in one tensor (the queries and the value dimensions of a kv head, in the output projection) are coupled: the small
one is enumerated. Where both are large, each is solved in turn with the other fixed, which is not exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..symmetry.spec import PermutationSpec

# Scores of a family: groups that meet -> array [*destination sizes, *source sizes], summed at the pairs that match.
Terms = Mapping[tuple[str, ...], np.ndarray]
_ENUMERATED = 4  # a coupled group of at most this size is enumerated: 24 permutations
_ROUNDS = 20
_DRAWN = 64  # units for which the chance is drawn
_REDUCED = 64  # scores of at least this size are reduced first


def assign(score: np.ndarray) -> np.ndarray:
    """Find the permutation ``p`` that maximises ``score[i, p[i]]`` summed over i.

    Args:
        score: ``[destination, source]``, or a stack of such scores with further dimensions in front. Each is solved on
            its own.

    Returns:
        int64 ``[..., destination]``: the source of every destination.
    """
    *outer, size, _ = score.shape
    solved = [linear_sum_assignment(cost)[1] for cost in _costs(score).reshape(-1, size, size)]
    return np.array(solved, dtype=np.int64).reshape(*outer, size)


def _costs(score: np.ndarray) -> np.ndarray:
    """Return what to minimise: of large scores the distance to the best of each row, and then of each column.

    The optimum stays the same, and the solver is faster.
    """
    if score.shape[-1] < _REDUCED:
        return -np.asarray(score, dtype=np.float64)
    cost = np.subtract(score.max(axis=-1, keepdims=True), score, dtype=np.float64)
    return np.subtract(cost, cost.min(axis=-2, keepdims=True), out=cost)


@dataclass
class Tally:
    """Scores of one group, summed over the indices of its parents.

    Attributes:
        matched: Score of the permutation found.
        identity: Score of the identity, with all other groups as found.
        random: Mean score over all permutations.
        chance: Score of units that take the best of as many scores as there are units, drawn from all of them.
        dead: Units that score zero with every unit of the other network, counted in the network that has more of them.
    """

    matched: float = 0.0
    identity: float = 0.0
    random: float = 0.0
    chance: float = 0.0
    dead: int = 0

    def add(self, score: np.ndarray, permutation: np.ndarray) -> None:
        """Count one more score matrix ``[destination, source]`` and its solution."""
        self.matched += float(score[np.arange(len(score)), permutation].sum())
        self.identity += float(score.trace())
        self.random += float(score.sum()) / len(score)
        drawn = score.reshape(-1)[_draws(len(score))].max(axis=1)
        self.chance += len(score) * float(drawn.sum()) / len(drawn)
        nothing = score == 0
        self.dead += max(int(nothing.all(axis=axis).sum()) for axis in (0, 1))


@dataclass
class Solution:
    """The best entries of a family (or a part of it), and their value.

    Attributes:
        value: The sum of the terms at the entries.
        entries: Member -> its entry.
        solved: Member -> each of its score matrices, the groups around it as found, and the permutation chosen there.
    """

    value: float = 0.0
    entries: dict[str, np.ndarray] = field(default_factory=dict)
    solved: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)

    def tallies(self) -> dict[str, Tally]:
        """Count the scores of every member."""
        found = {name: Tally() for name in self.solved}
        for name, parts in self.solved.items():
            for score, permutation in parts:
                found[name].add(score, permutation)
        return found


@dataclass(frozen=True)
class Family:
    """A group and all groups nested strictly inside it, solved together.

    Attributes:
        head: The outermost group.
        members: All groups, outer before inner, the head first.
        inside: Member -> the members directly inside it.
        outer: Parents of the head. They keep their order, and the head is solved for every index of them.
        sizes: Size of every member and outer group.
    """

    head: str
    members: tuple[str, ...]
    inside: Mapping[str, tuple[str, ...]]
    outer: tuple[str, ...]
    sizes: Mapping[str, int]

    def solve(self, terms: Terms) -> Solution:
        """Maximise the sum of the terms over all permutations of the members.

        Args:
            terms: Groups in the order of ``members`` -> scores ``[*outer, *destination, *source]``.
        """
        outer = tuple(self.sizes[name] for name in self.outer)
        parts = [self._best(self.head, {key: array[at] for key, array in terms.items()}) for at in np.ndindex(*outer)]
        entries = {
            name: np.stack([part.entries[name] for part in parts]).reshape(*outer, *parts[0].entries[name].shape)
            for name in self.members
        }
        return Solution(sum(part.value for part in parts), entries, _gathered(parts))

    def value(self, terms: Terms, entries: Mapping[str, np.ndarray]) -> float:
        """Return the sum of the terms at given entries; a member without an entry keeps its order."""
        return sum(float(array[self._places(key, entries)].sum()) for key, array in terms.items())

    def at(self, terms: Terms, entries: Mapping[str, np.ndarray]) -> Solution:
        """Return given entries of all members as a solution, with the scores of each, all the others as given."""
        solved = {}
        for name in self.members:
            size, outer = self.sizes[name], len(self.outer)
            rows = entries[name].reshape(-1, size)
            score = np.zeros((len(rows), size, size))
            for key in (key for key in terms if name in key):
                index = [place[..., None] for place in self._places(key, entries)]
                index[outer + len(key) + key.index(name)] = np.arange(size)  # all sources instead of the one given
                around = [outer + k for k, other in enumerate(key) if name not in self._branches[other]]
                score = score + terms[key][tuple(index)].sum(axis=tuple(around)).reshape(-1, size, size)
            solved[name] = list(zip(score, rows, strict=True))
        return Solution(self.value(terms, entries), {name: entries[name] for name in self.members}, solved)

    def _places(self, key: tuple[str, ...], entries: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Return the index of a term's elements that match at given entries: ``[*outer, *destination, *source]``."""
        line = (*self.outer, *key)
        grid = np.ix_(*(np.arange(self.sizes[name]) for name in line))
        at = dict(zip(line, grid, strict=True))
        above = {name: [o for o in line if o in self.outer or name in self._branches[o][1:]] for name in key}
        sources = [
            entries[name][(*(at[other] for other in above[name]), at[name])] if name in entries else at[name]
            for name in key
        ]
        return (*grid, *sources)

    @cached_property
    def _branches(self) -> dict[str, tuple[str, ...]]:
        """Member -> itself and everything inside it."""
        found: dict[str, tuple[str, ...]] = {}
        for name in reversed(self.members):
            found[name] = (name, *(inner for child in self.inside[name] for inner in found[child]))
        return found

    def _best(self, group: str, terms: Terms, final: bool = True) -> Solution:
        """Solve one group and the groups inside it; without ``final`` only the value is returned."""
        size = self.sizes[group]
        score = np.asarray(terms.get((group,), np.zeros((size, size))), dtype=np.float64)
        deeper = {key: array for key, array in terms.items() if len(key) > 1}
        alone, children = self._alone(self.inside[group], deeper)
        pairs: dict[str, np.ndarray] = {}
        for name in alone:
            values, pairs[name] = _assign_pairs(deeper.pop((group, name)))
            score = score + values
        if deeper:
            inner = [self._best_inside(children, _at(deeper, i, j), final=False) for i, j in np.ndindex(size, size)]
            score = score + np.array([part.value for part in inner]).reshape(size, size)
        permutation = assign(score)
        here = np.arange(size), permutation
        solution = Solution(float(score[here].sum()))
        if not final:
            return solution
        solution.entries[group], solution.solved[group] = permutation, [(score, permutation)]
        if children:
            inner = [self._best_inside(children, _at(deeper, i, j)) for i, j in enumerate(permutation.tolist())]
            for name in [name for child in children for name in self._branches[child]]:
                solution.entries[name] = np.stack([part.entries[name] for part in inner])
            solution.solved |= _gathered(inner)
        for name in alone:
            solution.entries[name] = pairs[name][here]
            scores = terms[(group, name)][here[0], :, here[1]]
            solution.solved[name] = list(zip(scores, solution.entries[name], strict=True))
        return solution

    def _alone(self, children: Sequence[str], terms: Terms) -> tuple[list[str], list[str]]:
        """Divide the children of a group into those that are solved by one assignment per pair, and the others."""
        inner = {key[1:]: array for key, array in terms.items()}
        coupled = self._coupled(children, inner)
        alone = [names[0] for names in coupled if len(names) == 1 and (names[0],) in inner]
        alone = [name for name in alone if not self.inside[name]]
        return alone, [name for name in children if name not in alone]

    def _best_inside(self, children: Collection[str], terms: Terms, final: bool = True) -> Solution:
        """Solve the groups of one parent at one pair of its indices; groups that no term couples are independent."""
        parts = []
        for coupled in self._coupled(children, terms):
            mine = set().union(*(self._branches[name] for name in coupled))
            own = {key: array for key, array in terms.items() if key[0] in mine}
            solve = self._best(coupled[0], own, final) if len(coupled) == 1 else self._together(coupled, own, final)
            parts.append(solve)
        return Solution(sum(part.value for part in parts), _entries(parts), _gathered(parts))

    def _coupled(self, children: Collection[str], terms: Terms) -> list[list[str]]:
        """Divide the children into sets that no term connects."""
        sets = [{child} for child in children]
        for key in terms:
            met = [s for s in sets if any(set(self._branches[child]) & set(key) for child in s)]
            sets = [s for s in sets if s not in met] + ([set().union(*met)] if met else [])
        return [[child for child in children if child in s] for s in sets]

    def _together(self, children: list[str], terms: Terms, final: bool) -> Solution:
        hubs = [name for name in children if not self.inside[name] and self.sizes[name] <= _ENUMERATED]
        if not hubs:
            return self._in_turn(children, terms)
        hub = min(hubs, key=self.sizes.__getitem__)
        rest, best, choice = [name for name in children if name != hub], None, None
        for order in itertools.permutations(range(self.sizes[hub])):
            value, fixed = self._fixed(terms, {hub}, {hub: np.array(order)})
            value += self._best_inside(rest, fixed, final=False).value
            if best is None or value > best:
                best, choice = value, np.array(order)
        assert best is not None and choice is not None
        if not final:
            return Solution(best)
        solution = self._best_inside(rest, self._fixed(terms, {hub}, {hub: choice})[1])
        solution.value, solution.entries[hub] = best, choice
        others = set(solution.entries) - {hub}
        score = self._fixed(terms, others, solution.entries)[1].get((hub,))
        solution.solved[hub] = [(np.zeros((len(choice),) * 2) if score is None else score, choice)]
        return solution

    def _in_turn(self, children: list[str], terms: Terms) -> Solution:
        """Alternate between large coupled groups, from the mean over all permutations of the others; not exact."""
        parts: dict[str, Solution] = {}
        best = value = -np.inf
        for _ in range(_ROUNDS):
            for child in children:
                entries = _entries(parts.values())
                others = {name for other in children if other != child for name in self._branches[other]}
                known = {name for name in others if name in entries}
                fixed = self._fixed(self._averaged(terms, others - known), known, entries)[1]
                parts[child] = self._best(child, {key: a for key, a in fixed.items() if key})
            entries = _entries(parts.values())
            value = self._fixed(terms, set(entries), entries)[0]
            if value <= best + 1e-12 * abs(value):
                break
            best = value
        return Solution(value, _entries(parts.values()), _gathered(parts.values()))

    def _averaged(self, terms: Terms, groups: Collection[str]) -> Terms:
        """Return the terms with some groups at the mean over all their permutations."""
        found: dict[tuple[str, ...], np.ndarray] = {}
        for key, array in terms.items():
            gone = [k for k, name in enumerate(key) if name in groups]
            mean = array.sum(axis=(*gone, *(k + len(key) for k in gone)))
            mean = mean / np.prod([self.sizes[key[k]] for k in gone])
            rest = tuple(name for name in key if name not in groups)
            found[rest] = found[rest] + mean if rest in found else mean
        return found

    def _fixed(self, terms: Terms, groups: Collection[str], entries: Mapping[str, np.ndarray]) -> tuple[float, Terms]:
        """Put some groups at given entries; return the value that is settled, and the terms of the other groups."""
        value, found = 0.0, {}
        for key, array in terms.items():
            rest, array = self._fix(key, array, groups, entries)
            if rest:
                found[rest] = found[rest] + array if rest in found else array
            else:
                value += float(array)
        return value, found

    def _fix(self, key: tuple[str, ...], array: np.ndarray, groups: Collection[str], entries: Mapping[str, np.ndarray]):
        chosen = [k for k, name in enumerate(key) if name in groups]
        if not chosen:
            return key, array
        kept = [k for k in range(len(key)) if k not in chosen]
        n = len(key)
        array = array.transpose([*chosen, *(k + n for k in chosen), *kept, *(k + n for k in kept)])
        grid = np.ix_(*(np.arange(self.sizes[key[k]]) for k in chosen))
        at = {key[k]: index for k, index in zip(chosen, grid, strict=True)}
        source = [
            entries[name][(*self._line(name, at, entries), at[name])] if name in entries else at[name] for name in at
        ]
        array = array[(*grid, *source)].sum(axis=tuple(range(len(chosen))))
        return tuple(key[k] for k in kept), array

    def _line(self, name: str, at: Mapping[str, np.ndarray], entries: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the grid indices of those ancestors that the entry has dimensions for."""
        above = [other for other in self.members if other != name and name in self._branches[other]]
        return [at[other] for other in above[len(above) - (entries[name].ndim - 1) :]]


def families(spec: PermutationSpec, groups: Collection[str]) -> list[Family]:
    """Gather the given groups into families: a group joins its innermost parent if that is given too.

    Args:
        spec: The spec that defines the groups.
        groups: The groups to solve for; all others keep their order.
    """
    chosen = [spec.groups[name] for name in spec.groups if name in groups]
    inside: dict[str, list[str]] = {group.name: [] for group in chosen}
    heads = []
    for group in chosen:
        innermost = spec.groups[group.parents[-1]] if group.parents else None
        if innermost and innermost.name in inside and (*innermost.parents, innermost.name) == group.parents:
            inside[innermost.name].append(group.name)
        else:
            heads.append(group)
    found = []
    for head in heads:
        members = [head.name]
        for name in members:
            members.extend(inside[name])
        sizes = {name: spec.groups[name].size for name in (*members, *head.parents)}
        family = {name: tuple(inside[name]) for name in members}
        found.append(Family(head.name, tuple(members), family, head.parents, sizes))
    return found


@lru_cache(maxsize=4)
def _draws(size: int) -> np.ndarray:
    """Draw places in a score matrix: for each of some units, as many as there are units."""
    return np.random.default_rng(0).integers(size * size, size=(min(size, _DRAWN), size))


def summed_terms(parts: Iterable[Terms]) -> Terms:
    """Add up terms, in double precision."""
    found: dict[tuple[str, ...], np.ndarray] = {}
    sums: set[tuple[str, ...]] = set()  # those in memory of our own
    for terms in parts:
        for key, array in terms.items():
            if key in sums:
                found[key] += array
            elif key in found:
                found[key] = np.add(found[key], array, dtype=np.float64)
                sums.add(key)
            else:
                found[key] = array
    return found


def _assign_pairs(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve an inner group for each pair of its parent's indices, from ``[destination, inner, source, inner]``.

    Returns:
        The values ``[destination, source]``, and the permutations ``[destination, source, inner]``.
    """
    values, chosen = [], []
    for row in array:
        scores = np.ascontiguousarray(row.transpose(1, 0, 2), dtype=np.float64)
        chosen.append(assign(scores))
        values.append(np.take_along_axis(scores, chosen[-1][:, :, None], axis=2).sum(axis=(1, 2)))
    return np.stack(values), np.stack(chosen)


def _at(terms: Terms, i: int, j: int) -> Terms:
    """Return the terms inside one pair of indices of their first group."""
    return {key[1:]: array[i].take(j, axis=len(key) - 1) for key, array in terms.items()}


def _entries(parts: Iterable[Solution]) -> dict[str, np.ndarray]:
    return {name: entry for part in parts for name, entry in part.entries.items()}


def _gathered(parts: Iterable[Solution]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for part in parts:
        for name, solved in part.solved.items():
            found.setdefault(name, []).extend(solved)
    return found
