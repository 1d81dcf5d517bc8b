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
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.names import named_tensors, plain_name, unwrap
from ..symmetry.errors import SpecMismatchError
from ..symmetry.permutation import Permutation
from ..symmetry.spec import PermutationSpec
from .assignment import families
from .coordinate_descent import GroupMatch, MatchReport, descend, inward
from .correlation import correlations
from .objective import CorrelationTie, WeightTie

__all__ = ["GroupMatch", "MatchReport", "activation_matching", "weight_matching"]

_STATISTICS = ("running_mean", "running_var")  # scaled by the data, not by the weights


def weight_matching(
    spec: PermutationSpec,
    *,
    source: nn.Module | Mapping[str, Tensor],
    target: nn.Module | Mapping[str, Tensor],
    seed: int = 0,
    iterations: int = 100,
    restarts: int = 1,
    groups: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    residual: bool | None = None,
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
        restarts: Further starts; the best result counts. The first is found group by group from the frozen axes
            inward and often escapes a poor optimum (stacked experts need it), the others are random. With 0 it is the
            algorithm of the paper, in half the time.
        groups: Match only these free groups (names, or a regular expression); all by default.
        exclude: Leave these groups as they are.
        residual: Whether to match residual streams too. Default: not those of a network with attention, where the
            literature finds the identity best; see :func:`residual_streams`.

    Returns:
        The permutation, with a :class:`MatchReport` in its ``report``.

    Raises:
        SpecMismatchError: A network is not of the spec, or the two tie different weights.

    Reference:
        Ainsworth et al., 2023, "Git Re-Basin", arXiv:2209.04836, Algorithm 1.
    """
    chosen = _chosen(spec, groups, exclude, residual)
    ties = _weight_ties(spec, source, target, chosen)
    among = families(spec, chosen)
    best = descend(spec, ties, among, seed=seed, iterations=iterations)
    for restart in range(1, restarts + 1):
        start = inward(spec, ties, among) if restart == 1 else spec.random(seed + restart, chosen)
        other = descend(spec, ties, among, seed=seed + restart, iterations=iterations, start=start)
        best = max(best, other, key=lambda found: found.report.objective[-1])
    return best


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
    residual: bool | None = None,
) -> Permutation:
    """The permutation of ``source`` whose units correlate best with those of ``target`` on the same data.

    Each network sees each batch once, in eval mode. A unit is observed after its non-linearity, as the input of the
    linear or convolution layers that read it, else as the output of those that produce it. A group that no such layer
    touches (stacked experts) is matched by weights, given the others. Under ``torch.distributed`` every process calls
    it with its share of the batches, which may be none: the sums are added up.

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
        residual: As in :func:`weight_matching`.

    Returns:
        The permutation, with a :class:`MatchReport` in its ``report``.

    Raises:
        SpecMismatchError: A network is not of the spec, or the two tie different weights.
        ValueError: There are no batches, on any process.

    Reference:
        Adnan et al., 2025, arXiv:2505.05143, section 3. They match layer after layer on permuted prefixes, one pass
        over the data each; permutation equivariance gives the same correlations from the unpermuted networks at once.
    """
    chosen = _chosen(spec, groups, exclude, residual)
    weights = _weight_ties(spec, source, target, chosen)
    found = correlations(spec, chosen, source=source, target=target, batches=batches, forward=forward)
    # Last digits, which depend on the order of the sums, are not to choose among units that match equally well.
    ties = [CorrelationTie(spec, axis, matrix.round(7)) for axis, matrix in found]
    seen = {name for name in chosen if any(name in tie.groups for tie in ties)}
    permutation = descend(spec, ties, families(spec, seen), seed=seed, iterations=iterations)
    if unseen := [name for name in chosen if name not in seen]:
        rest = [tie for tie in weights if not tie.groups.isdisjoint(unseen)]
        start = permutation
        permutation = descend(spec, rest, families(spec, unseen), seed=seed, iterations=iterations, start=start)
    return permutation


def residual_streams(spec: PermutationSpec) -> list[str]:
    """The groups that run through a whole network with attention: tied to five matrices or more, and to no head.

    A feed-forward layer ties at most three matrices (gate, up, down), the heads of an attention have inner groups.
    There are none in a network without nested groups, such as a convolutional one.

    Reference:
        Verma and Elbayad, 2024, "Merging Text Transformer Models from Different Initializations", arXiv:2403.00986
        (of all ways to permute the residual stream of BERT, the identity has the lowest barrier).
    """
    outer = {parent for group in spec.free.values() for parent in group.parents}
    if not outer:
        return []
    matrices = {
        name: {tensor for tensor, _ in spec.members[name] if len(spec.shapes[tensor]) > 1} for name in spec.free
    }
    return [
        name
        for name, group in spec.free.items()
        if not group.parents and name not in outer and len(matrices[name]) >= 5
    ]


def _chosen(spec: PermutationSpec, groups: Any, exclude: Any, residual: bool | None) -> list[str]:
    chosen = list(spec.free) if groups is None else [name for name in spec.select(groups) if name in spec.free]
    left_out = set() if exclude is None else set(spec.select(exclude))
    if not residual and (residual is not None or groups is None):
        left_out |= set(residual_streams(spec))
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
