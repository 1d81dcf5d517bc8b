"""Unit scores: what a whole unit is worth, gathered from the scores of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ..masks.mask import MaskMismatchError
from ..networks.numbers import check_numbers
from ..networks.selection import Patterns
from ..networks.shards import whole
from ..symmetry.groups import Block
from ..symmetry.structure import Structure

Reduce = Callable[[Tensor], Tensor]


def unit_mean(scores: Tensor) -> Tensor:
    """Score a unit by the mean of its weights' scores: what it is worth for each weight that goes with it.

    Args:
        scores: Scores of weights. The last axis holds the weights of one unit.
    """
    return scores.mean(-1, dtype=torch.float64)


def unit_sum(scores: Tensor) -> Tensor:
    """Score a unit by the sum of its weights' scores: what goes with the whole unit.

    Args:
        scores: Scores of weights. The last axis holds the weights of one unit.
    """
    return scores.sum(-1, dtype=torch.float64)


def unit_max(scores: Tensor) -> Tensor:
    """Score a unit by the highest of its weights' scores.

    Args:
        scores: Scores of weights. The last axis holds the weights of one unit.
    """
    return scores.amax(-1).double()


def unit_scores(
    spec: Structure,
    scores: Mapping[str, Tensor],
    *,
    reduce: Reduce = unit_mean,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
) -> dict[str, Tensor]:
    """Gather the scores of weights into scores of units, over all axes that a group lies on.

    The weights of a unit are those of the tensors with two or more axes: what it receives through and sends through.
    Each counts once, also where a unit sends to itself. Biases and the parameters of norms do not count.

    Args:
        spec: The symmetries.
        scores: Parameter name -> scores in its shape, as :func:`~hf_lottery.pruning.score_weights` returns them.
        reduce: Turns the scores of the weights of each unit, the last axis of a tensor, into one:
            :func:`unit_mean`, :func:`unit_sum`, :func:`unit_max` or a function of your own.
        include: The groups, as for :meth:`~hf_lottery.symmetry.PermutationSpec.select`. By default all free groups that
            lie on a tensor with scores.
        exclude: Groups to leave out, as for ``select``.

    Returns:
        Group name -> scores of the sizes of its parents, then its own.

    Raises:
        MaskMismatchError: Scores do not fit the spec, or none belong to a group that ``include`` names.
        SymmetryError: A pattern matches no group.

    Reference:
        Fang et al., 2023, "DepGraph: Towards Any Structural Pruning", arXiv:2301.12900, gather over the same axes. Here
        they come from a proven spec, and a group of nested units has a score for each index of its parents.
    """
    check_numbers(scores)
    matrices = {name: whole(score).detach() for name, score in scores.items() if score.ndim >= 2}
    _check_fit(spec, matrices)
    found = {}
    for group in spec.select(include, exclude=exclude):
        if include is None and spec.groups[group].frozen is not None:
            continue
        parts = list(_parts(spec, group, matrices))
        if parts:
            found[group] = reduce(torch.cat(parts, dim=-1))
            _check_reduced(group, found[group], spec.entry_shape(group))
        elif include is not None:
            raise MaskMismatchError(
                f"scores must hold a tensor of group {group!r} with two or more axes; received none of "
                f"{[name for name, _ in spec.members[group]][:3]}. Score them, or exclude the group."
            )
    return found


def _parts(spec: Structure, group: str, scores: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The scores of all weights of a group, from each block: ``[*entry shape, weights]``."""
    for tensor in dict.fromkeys(tensor for tensor, _ in spec.members[group] if tensor in scores):
        for block in spec.tensors[tensor]:
            yield from _of_block(spec, group, block, scores[tensor])


def _of_block(spec: Structure, group: str, block: Block, score: Tensor) -> Iterator[Tensor]:
    slots = block.slots(spec.groups)
    here = [(*slot.parents, number) for number, slot in enumerate(slots) if slot.group == group]
    if not here:
        return
    for k, axis in enumerate(block.axes):
        score = score.index_select(k, torch.from_numpy(axis.positions.reshape(-1)).to(score.device))
    score, shape = score.reshape([spec.groups[slot.group].size for slot in slots]), spec.entry_shape(group)
    for number, dims in enumerate(here):
        first = tuple(range(len(dims)))
        rows = score.movedim(dims, first)
        if number:  # a weight from a unit to itself was counted already
            fresh = torch.ones((1,) * score.ndim, dtype=torch.bool)
            for other in here[:number]:
                fresh = fresh & _apart(score.shape, other, dims)
            rows = rows[fresh.movedim(dims, first).expand(rows.shape).to(rows.device)]
        yield rows.reshape(*shape, -1)


def _apart(shape: torch.Size, one: tuple[int, ...], other: tuple[int, ...]) -> Tensor:
    """Where two occurrences of a group in a block are at different units."""
    grid = np.ix_(*map(np.arange, shape))
    apart = np.zeros((1,) * len(shape), dtype=np.bool_)
    for a, b in zip(one, other, strict=True):
        apart = apart | (grid[a] != grid[b])
    return torch.from_numpy(apart)


def _check_fit(spec: Structure, scores: Mapping[str, Tensor]) -> None:
    for name, score in scores.items():
        if name not in spec.shapes or tuple(score.shape) != spec.shapes[name]:
            wanted = f"the shape {list(spec.shapes[name])}" if name in spec.shapes else "an entry in the spec"
            raise MaskMismatchError(
                f"the scores of {name!r} must have {wanted}; received {list(score.shape)}. They are of another model, "
                "or the spec is."
            )


def _check_reduced(group: str, score: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(score.shape) != shape or not score.is_floating_point():
        raise ValueError(
            f"reduce must return one floating score for each unit of {group!r}, of the shape {list(shape)}; received "
            f"{score.dtype} {list(score.shape)}. It reduces the last axis alone."
        )
    if score.isnan().any():
        raise ValueError(f"the scores of the units of {group!r} must be numbers; received NaN.")
