"""Matching: the permutation that brings one network as close as possible to another.

References:
    Ainsworth, Hayase and Srinivasa, 2023, "Git Re-Basin", arXiv:2209.04836 (weight and activation matching). This
    module solves nested groups (heads and the dimensions inside them) exactly in one step, visits a group again only
    when a neighbour has changed, and subtracts column and row minima before each assignment.
    Adnan et al., 2025, "Sparse Training from Random Initialization: Aligning Lottery Ticket Masks using Weight
    Symmetry", arXiv:2505.05143 (Pearson correlations after the non-linearity). This module takes all groups from one
    pass over the unpermuted networks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..masks.mask import Mask
from ..networks.display import first_names
from ..networks.forward import Forward
from ..networks.names import named_tensors
from ..networks.selection import Patterns
from ..symmetry.errors import SpecMismatchError
from ..symmetry.permutation import Permutation
from ..symmetry.spec import PermutationSpec
from .assignment import families
from .coordinate_descent import descend
from .correlation import correlations
from .match import Match
from .objective import CorrelationTie, WeightTie

_STATISTICS = ("running_mean", "running_var")  # scaled by the data, not by the weights


def weight_matching(
    spec: PermutationSpec,
    *,
    source: nn.Module | Mapping[str, Tensor],
    target: nn.Module | Mapping[str, Tensor],
    seed: int = 0,
    iterations: int = 100,
    start: Permutation | None = None,
    restarts: int = 0,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    residual: bool | None = None,
) -> Match:
    """Find the permutation of ``source`` with the largest inner product with ``target``, over all parameters.

    The method is coordinate descent: every group in turn is given its best permutation while the others are held, until
    nothing improves. The first sweep goes inward, from the inputs, the outputs and all other groups that stay, and
    compares each group with what is settled by then; later ones go in random order. It is fast, needs no data, and
    finds a local optimum. Norm statistics are not compared.

    Each sweep costs a product of two matrices for every place where a group lies on a weight, and an assignment for
    every group (one for every pair of heads or experts too), but a group is visited again only if a neighbour has
    changed. Groups that meet no other group to be matched, such as the heads and feed-forward units of a transformer
    whose residual stream stays, are solved once, and exactly.

    Args:
        spec: The symmetries of both networks.
        source: The network to move; a module or state dict, not changed.
        target: The network to move it towards; not changed.
        seed: Seed of the order of the groups. The same seed gives the same permutation.
        iterations: The most sweeps over all groups, after the inward one.
        start: A permutation to start from, without an inward sweep; groups that are not matched stay as it has them.
            ``spec.identity()`` is the start of the paper, which took more sweeps and ended lower on the networks that
            we measured. By default the first sweep goes inward, and is dropped if the identity is better than what it
            finds.
        restarts: How many further starts to try where the start can matter; the best result is returned. Each costs
            another descent. The first is the identity (the inward sweep, if ``start`` is given), the others are random.
        include: Match only the groups whose names match: a regular expression that may match anywhere in a name, or
            several. A full name selects that group alone. By default all free groups are matched.
        exclude: Patterns of the groups to leave as they are.
        residual: Whether to match residual streams too. By default those of a network with attention are left as they
            are, since the literature finds the identity best there, unless ``include`` names them; see
            :func:`residual_streams`.

    Returns:
        The permutation and a report of how well each group was matched.

    Raises:
        SpecMismatchError: A network or ``start`` is not of the spec, or the two networks tie different weights.
        SymmetryError: A pattern matches no group.
        ValueError: ``iterations`` is below 1, or a weight is NaN, infinite, complex or quantised.
        TypeError: A network is neither a model nor a state dict, such as a mask or a ticket, or ``start`` is no
            permutation.

    Warns:
        UserWarning: The spec is not proven yet; or residual streams were left out by default, and the rest matches no
            better than chance.

    Reference:
        Ainsworth et al., 2023, "Git Re-Basin", arXiv:2209.04836, Algorithm 1.
    """
    if start is not None:
        check_start(spec, start)
    chosen, left_out = chosen_groups(spec, include, exclude, residual)
    ties = weight_ties(spec, source, target, chosen)
    found = descend(
        spec,
        ties,
        families(spec, chosen),
        seed=seed,
        iterations=iterations,
        restarts=restarts,
        inward=start is None,
        start=start,
    )
    return _reported(found, left_out, residual)


def activation_matching(
    spec: PermutationSpec,
    *,
    source: nn.Module,
    target: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None = None,
    tokens: int | None = None,
    one_place: bool = False,
    seed: int = 0,
    iterations: int = 100,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    residual: bool | None = None,
) -> Match:
    """Find the permutation of ``source`` whose units correlate best with those of ``target`` on the same data.

    Each network sees each batch once, in eval mode. A unit is observed after its non-linearity, as the input of the
    linear or convolution layers that read it, else as the output of those that produce it. A group that no such layer
    touches (stacked experts) is matched by weights, given the others. Under ``torch.distributed`` every process calls
    this function with its share of the batches, which may be none: the sums are added up over the processes.

    Args:
        spec: The symmetries of both networks.
        source: The network to move; not changed, nor is its training mode.
        target: The network to move it towards; not changed.
        batches: Inputs: dicts for ``model(**batch)``, tuples for ``model(*batch)``, or tensors.
        forward: ``forward(model, batch)`` instead, with the batch as it came.
        tokens: At most so many tokens of each batch are compared, drawn at random, the same in both networks. None
            compares all. Linear layers and others whose units come last have tokens; maps of convolutions are compared
            whole. A sample changes the result. On two pairs of small vision transformers from different seeds, 20
            tokens for each unit of the widest group (over all batches) kept 59 and 73 % of the units' places and 99 %
            of the objective; 10 tokens kept 52 and 64 %, and 97 and 99 %; 5 tokens kept 31 and 46 %, and 93 and 97 %.
        one_place: Whether to observe each group at one place, the last layer that reads it, instead of at all of them.
            On the same pairs this kept 73 and 77 % of the units' places and 96 % of the objective.
        seed: Seed of the order of the groups, and of the choice of tokens.
        iterations: The most sweeps over all groups.
        include: As in :func:`weight_matching`.
        exclude: As in :func:`weight_matching`.
        residual: As in :func:`weight_matching`.

    Returns:
        The permutation and a report of how well each group was matched.

    Raises:
        SpecMismatchError: A network is not of the spec, or the two tie different weights.
        SymmetryError: A pattern matches no group.
        ValueError: There are no batches on any process, an activation or weight is not finite, or ``iterations`` is
            below 1, or ``tokens`` is.
        TypeError: A network is not a model.

    Warns:
        UserWarning: As in :func:`weight_matching`.

    Reference:
        Adnan et al., 2025, arXiv:2505.05143, section 3. They match layer after layer on permuted prefixes, one pass
        over the data each; permutation equivariance gives the same correlations from the unpermuted networks at once.
    """
    check_runnable(source=source, target=target)
    chosen, left_out = chosen_groups(spec, include, exclude, residual)
    weight_ties(spec, source, target, chosen)  # refuse what does not fit before all batches run
    observed = correlations(
        spec,
        chosen,
        source=source,
        target=target,
        batches=batches,
        forward=forward,
        tokens=tokens,
        one_place=one_place,
        seed=seed,
    )
    # The last digits depend on the order of the sums; they must not choose among units that match equally well.
    ties = [CorrelationTie(spec, axis, matrix.round(7, out=matrix)) for axis, matrix in observed]
    seen = {name for name in chosen if any(name in tie.groups for tie in ties)}
    found = descend(spec, ties, families(spec, seen), seed=seed, iterations=iterations)
    unseen = [name for name in chosen if name not in seen]
    if not unseen:
        return _reported(found, left_out, residual)
    rest = weight_ties(spec, source, target, unseen)
    among = families(spec, unseen)
    whole = descend(spec, rest, among, seed=seed, iterations=iterations, start=found.permutation)
    report = replace(whole.report, groups={**found.report.groups, **whole.report.groups})
    return _reported(replace(whole, report=report), left_out, residual)


def residual_streams(spec: PermutationSpec) -> list[str]:
    """Find the groups that run through a whole network with attention: tied to five matrices or more, and to no head.

    A feed-forward layer ties at most three matrices (gate, up, down), and the heads of an attention have inner groups.
    A network without nested groups, such as a convolutional one, has no residual streams in this sense.

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


def check_runnable(**networks: Any) -> None:
    """Check that networks are models, given by what to call them."""
    for which, network in networks.items():
        if not isinstance(network, nn.Module):
            raise TypeError(f"the {which} must be a model, which can be run; received {type(network).__name__}.")


def check_start(spec: PermutationSpec, start: Any) -> None:
    if not isinstance(start, Permutation):
        raise TypeError(
            f"start must be a permutation; received {type(start).__name__}. Of a match, pass match.permutation; the "
            "start of the paper is spec.identity()."
        )
    if start.spec is not spec and start.spec.fingerprint != spec.fingerprint:
        raise SpecMismatchError(
            f"start must be a permutation of the spec, {spec.fingerprint[:8]}; received one of spec "
            f"{start.spec.fingerprint[:8]}. Find it with the same spec."
        )


def chosen_groups(
    spec: PermutationSpec, include: Patterns | None, exclude: Patterns | None, residual: bool | None
) -> tuple[list[str], dict[str, str]]:
    """Return the groups to match, and why each residual stream among them is left out."""
    if spec.proof == "later":
        warnings.warn(
            "the spec is not proven yet: a match may change what a network computes. Call spec.verify(model, inputs).",
            stacklevel=3,
        )
    chosen = [
        name
        for name in spec.select(include, exclude=exclude)
        if spec.groups[name].frozen is None and spec.groups[name].size > 1
    ]
    if residual or (residual is None and include is not None):
        return chosen, {}
    why = "a residual stream keeps its order by default; residual=True matches it"
    if residual is False:
        why = "a residual stream, and residual=False"
    left_out = {name: why for name in residual_streams(spec) if name in chosen}
    return [name for name in chosen if name not in left_out], left_out


def _reported(found: Match, left_out: Mapping[str, str], residual: bool | None) -> Match:
    """Return the match with what was left out in its report, and warn if the rest then says nothing."""
    report = replace(found.report, left_out=left_out)
    if left_out and residual is None and not report.beats_chance:
        warnings.warn(
            f"the residual streams were left as they are ({first_names([*left_out], limit=2)}), and the other groups "
            "match no better than chance. If the streams of the two networks are in another order, as those of "
            "networks from different seeds may be, pass residual=True; otherwise the networks are not alike.",
            stacklevel=3,
        )
    return replace(found, report=report)


def weight_ties(spec: PermutationSpec, source: Any, target: Any, chosen: Sequence[str]) -> list[WeightTie]:
    """Return the blocks of the weights that some chosen group lies on, those of a tied weight once."""
    mine, theirs = weights_to_match(spec, source=source, target=target)
    if mine.keys() != theirs.keys():
        raise SpecMismatchError(
            "source and target must hold the same weights and tie the same ones; "
            f"received {min(mine.keys() ^ theirs.keys())!r} in one only. Load both into the same architecture."
        )
    wanted, blocks, names = set(chosen), [], []
    for name in mine:
        for block in spec.tensors[name]:
            if any(leaf in wanted for axis in block.axes for leaf in axis.leaves):
                ours, other = theirs[name].detach(), mine[name].detach()
                dtype = torch.float64 if torch.float64 in (ours.dtype, other.dtype) else torch.float32
                blocks.append((block, ours.to(dtype), other.to(ours.device, dtype)))
                names.append(name)
    ties = WeightTie.join(spec, blocks)
    if not all(math.isfinite(tie.norm) for tie in ties):
        _refuse_infinite(names, source=mine, target=theirs)
    return ties


def _refuse_infinite(names: Collection[str], **networks: Mapping[str, Tensor]) -> NoReturn:
    for name in names:
        for which, tensors in networks.items():
            largest = tensors[name].detach().double().abs().max()
            if not largest < 1e15:
                what = "NaN" if largest.isnan() else f"{largest.item():.3g}"
                raise ValueError(
                    f"every weight that is matched must be finite, and small enough to be squared; received {what} in "
                    f"{name!r} of the {which}. Check how that network was trained."
                )
    raise ValueError(
        f"the products of {next(iter(names))!r} and others in both networks must be finite; received weights that are "
        "too large. Scale both networks down."
    )


def weights_to_match(spec: PermutationSpec, **networks: Any) -> list[dict[str, Tensor]]:
    """Return the tensors to match of each network, by the first of their names.

    They are those that are parameters of some network, or, if these are not known, all tensors except norm statistics.
    """
    tensors = {}
    for which, network in networks.items():
        if isinstance(network, Mask) or not isinstance(network, nn.Module | Mapping):
            raise TypeError(
                f"the {which} must be a model or a state dict; received {type(network).__name__}. Match the networks, "
                "and then permute a mask by match.permutation(mask)."
            )
        spec.check_fits(network)
        tensors[which] = named_tensors(network)
    parameters = {
        name
        for which, network in networks.items()
        if isinstance(network, nn.Module)
        for name, tensor in tensors[which].items()
        if isinstance(tensor, nn.Parameter)
    }
    return [_to_match(which, named, parameters) for which, named in tensors.items()]


def _to_match(which: str, tensors: Mapping[str, Tensor], parameters: Collection[str]) -> dict[str, Tensor]:
    found: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        counts = name in parameters if parameters else not name.endswith(_STATISTICS)
        if counts and (tensor.is_complex() or (parameters and not tensor.is_floating_point())):
            raise ValueError(
                f"weights to match must be real floating numbers; received {name!r} of {tensor.dtype} in the {which}. "
                "Split complex weights into two real ones, and load quantised ones without quantisation."
            )
        if counts and tensor.ndim and tensor.is_floating_point():
            place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
            found.setdefault(place, (name, tensor))
    if not found:
        raise ValueError(f"the {which} must hold weights to match; received none.")
    return dict(found.values())
