"""Matching: the permutation that brings one network as close as possible to another.

References:
    Ainsworth, Hayase and Srinivasa, 2023, "Git Re-Basin", arXiv:2209.04836 (weight and activation matching). Ours
    solves nested groups (heads and the dimensions inside them) exactly in one step, visits a group again only when a
    neighbour has changed, and subtracts column and row minima before each assignment.
    Adnan et al., 2025, "Sparse Training from Random Initialization: Aligning Lottery Ticket Masks using Weight
    Symmetry", arXiv:2505.05143 (Pearson correlations after the non-linearity). Ours takes all groups from one pass over
    the unpermuted networks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .assignment import Family, Tally, families
from .correlation import correlations
from .mask import plain_name, unwrap
from .permutation import Permutation
from .symmetry.spec import PermutationSpec, SpecMismatchError, named_tensors
from .ties import CorrelationTie, Tie, WeightTie

_STATISTICS = ("running_mean", "running_var")  # scaled by the data, not by the weights


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


def weight_matching(
    spec: PermutationSpec,
    *,
    source: nn.Module | Mapping[str, Tensor],
    target: nn.Module | Mapping[str, Tensor],
    seed: int = 0,
    iterations: int = 100,
    groups: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> Permutation:
    """The permutation of ``source`` with the largest inner product with ``target``, over all parameters.

    Coordinate descent: every group in turn, in random order, is given its best permutation while the others are held,
    until nothing improves. It is fast and needs no data, and finds a local optimum. Norm statistics do not count.

    Args:
        spec: The symmetries of both networks.
        source: The network to move; a module or state dict, not changed.
        target: The network to move it towards; not changed.
        seed: Of the order of the groups; the same seed gives the same permutation.
        iterations: Sweeps at most.
        groups: Match only these free groups (names, or a regular expression); all by default.
        exclude: Leave these groups as they are.

    Returns:
        The permutation, with a :class:`MatchReport` in its ``report``.

    Raises:
        SpecMismatchError: A network is not of the spec, or the two tie different weights.

    Reference:
        Ainsworth et al., 2023, "Git Re-Basin", arXiv:2209.04836, Algorithm 1.
    """
    chosen = _chosen(spec, groups, exclude)
    ties = _weight_ties(spec, source, target, chosen)
    return _descend(spec, ties, families(spec, chosen), seed=seed, iterations=iterations)


def activation_matching(
    spec: PermutationSpec,
    *,
    source: nn.Module,
    target: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None = None,
    seed: int = 0,
    iterations: int = 100,
    groups: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> Permutation:
    """The permutation of ``source`` whose units correlate best with those of ``target`` on the same data.

    Each network sees each batch once, in eval mode. A unit is observed after its non-linearity, as the input of the
    linear or convolution layers that read it, else as the output of those that produce it. A group that no such layer
    touches (stacked experts) is matched by weights, given the others. Under ``torch.distributed``, give every process
    its share of the batches: the sums are added up.

    Args:
        spec: The symmetries of both networks.
        source: The network to move; not changed, nor is its training mode.
        target: The network to move it towards; not changed.
        batches: Inputs: dicts for ``model(**batch)``, tuples for ``model(*batch)``, or tensors.
        forward: ``forward(model, batch)`` instead, with the batch as it came.
        seed: Of the order of the groups.
        iterations: Sweeps at most.
        groups: As in :func:`weight_matching`.
        exclude: As in :func:`weight_matching`.

    Returns:
        The permutation, with a :class:`MatchReport` in its ``report``.

    Raises:
        SpecMismatchError: A network is not of the spec, or the two tie different weights.
        ValueError: There are no batches.

    Reference:
        Adnan et al., 2025, arXiv:2505.05143, section 3. They match layer after layer on permuted prefixes, one pass
        over the data each; permutation equivariance gives the same correlations from the unpermuted networks at once.
    """
    chosen = _chosen(spec, groups, exclude)
    weights = _weight_ties(spec, source, target, chosen)
    found = correlations(spec, chosen, source=source, target=target, batches=batches, forward=forward)
    ties = [CorrelationTie(spec, axis, matrix) for axis, matrix in found]
    seen = {name for name in chosen if any(name in tie.groups for tie in ties)}
    permutation = _descend(spec, ties, families(spec, seen), seed=seed, iterations=iterations)
    if unseen := [name for name in chosen if name not in seen]:
        rest = [tie for tie in weights if not tie.groups.isdisjoint(unseen)]
        start = permutation
        permutation = _descend(spec, rest, families(spec, unseen), seed=seed, iterations=iterations, start=start)
    return permutation


def _chosen(spec: PermutationSpec, groups: Any, exclude: Any) -> list[str]:
    chosen = list(spec.free) if groups is None else [name for name in spec.select(groups) if name in spec.free]
    left_out = set() if exclude is None else set(spec.select(exclude))
    return [name for name in chosen if name not in left_out and spec.groups[name].size > 1]


def _weight_ties(spec: PermutationSpec, source: Any, target: Any, chosen: Sequence[str]) -> list[WeightTie]:
    """The blocks of the weights that some chosen group lies on, a tied weight once."""
    parameters = {
        plain_name(name)
        for network in (source, target)
        if isinstance(network, nn.Module)
        for name, _ in unwrap(network).named_parameters(remove_duplicate=False)
    }
    mine, theirs = (_weights(spec, network, parameters) for network in (source, target))
    if mine.keys() != theirs.keys():
        raise SpecMismatchError(
            "source and target must hold the same weights and tie the same ones; "
            f"received {min(mine.keys() ^ theirs.keys())!r} in one only. Load both into the same architecture."
        )
    wanted = set(chosen)
    found = []
    for name in mine:
        for block in spec.tensors[name]:
            if any(leaf in wanted for axis in block.axes for leaf in axis.leaves):
                ours, other = theirs[name].detach(), mine[name].detach()
                dtype = torch.float64 if torch.float64 in (ours.dtype, other.dtype) else torch.float32
                found.append(WeightTie(spec, block, ours.to(dtype), other.to(ours.device, dtype)))
    return found


def _weights(spec: PermutationSpec, network: Any, parameters: Collection[str]) -> dict[str, Tensor]:
    """The tensors to match, by the first of their names; without known ``parameters``, all but norm statistics."""
    spec.check_fits(network)
    found: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in named_tensors(network).items():
        counts = name in parameters if parameters else not name.endswith(_STATISTICS)
        if counts and tensor.ndim and tensor.is_floating_point():
            place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
            found.setdefault(place, (name, tensor))
    return dict(found.values())


def _descend(
    spec: PermutationSpec,
    ties: Sequence[Tie],
    among: Sequence[Family],
    *,
    seed: int,
    iterations: int,
    start: Permutation | None = None,
) -> Permutation:
    """Coordinate descent over families, from the identity or from ``start``; only dirty ones are solved again."""
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
    groups = dict(start.report.groups) if start else {}
    groups |= {name: _match(permutation, name, *tallies[name]) for name in spec.groups if name in tallies}
    permutation.report = MatchReport(groups, tuple(objective), not dirty)
    return permutation


def _step(family: Family, ties: Sequence[Tie], entries: dict[str, np.ndarray], tallies: dict) -> float:
    """Give one family its best entries, in place, and return the gain in the objective (0.0 if it stays)."""
    terms: dict[tuple[str, ...], np.ndarray] = {}
    for tie in ties:
        for key, array in tie.terms(family, entries).items():
            terms[key] = terms[key] + array if key in terms else array
    solution = family.solve(terms)
    norm = sum(tie.norm for tie in ties)
    for name, tally in solution.tallies.items():
        tallies[name] = tally, sum(tie.norm for tie in ties if name in tie.groups)
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
    scores = (score / max(norm, 1e-300) for score in (tally.matched, tally.identity, tally.random))
    return GroupMatch(entry.size, *scores, float((entry != np.arange(entry.shape[-1])).mean()), tally.dead)
