"""prune_units(): turn the scores of weights and a sparsity into a UnitMask."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..masks.mask import Mask, MaskMismatchError, matrices_of
from ..networks.selection import Patterns, select_names
from ..pruning.mask_from_scores import checked_fraction
from ..pruning.scopes import PruneRequest, Scope, global_ranking
from ..symmetry.errors import SymmetryError
from ..symmetry.structure import Structure
from .candidates import unit_candidates
from .unit_mask import UnitMask, covered_by
from .unit_scoring import Reduce, unit_mean, unit_scores

PerGroup = int | Mapping[str, int]


class UnitRequest(PruneRequest):
    """The request that a scope answers for units: its ``scores`` are those of groups, and a row of them goes together.

    What the minimum protects stays, and less goes then: a scope need not be told that two heads are too few for 90 %.
    """

    def to_remove(self) -> int:
        """Return how many units still have to be removed, at most what is left beside the protected ones."""
        left = sum(self.left().values())
        floor = sum(self.floors[name] for name in self.scores)
        return max(min(self.gone, self.total - floor) - (self.total - left), 0)


@dataclass(frozen=True)
class _Ranked:
    """The units of one group in order: ``order`` sorts the rows, and each bundle of them goes or stays as one.

    Attributes:
        order: Positions of the units, lowest score first; one row for each index of the parents.
        scores: The mean score of each bundle, the same for all of its units, ``[bundles, units of a bundle]``.
        alive: Which bundles are left, in the same shape.
    """

    order: Tensor
    scores: Tensor
    alive: Tensor

    def units(self, kept: Tensor) -> Tensor:
        """Which units stay, one row for each index of the parents; a bundle stays if any of its units does."""
        rows, size = self.order.shape
        stays = kept.any(dim=1).repeat_interleave(size // len(kept)).expand(rows, size)
        return torch.zeros(rows, size, dtype=torch.bool).scatter(1, self.order, stays)


def prune_units(
    model: nn.Module,
    spec: Structure,
    scores: Mapping[str, Tensor],
    *,
    sparsity: float,
    scope: Scope = global_ranking,
    reduce: Reduce = unit_mean,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    multiple: PerGroup = 1,
    minimum: PerGroup = 1,
    within: UnitMask | None = None,
) -> UnitMask:
    """Remove the units with the lowest scores: ``round(sparsity * n)`` of the ``n`` units of all chosen groups.

    Equal scores are removed by sorted name of the group, then position. A group with parents loses as many units for
    every index of them, the lowest of each. So such units, and those of a ``multiple``, go in bundles; a bundle that
    would remove more than asked for stays.

    Groups compete by what ``reduce`` makes of their units. The mean, which is the default, asks what is lost for each
    weight that goes: a head of 200,000 weights and a feed-forward unit of 1,500 are then compared by what they cost.
    With the sum, all that counts is what the whole unit is worth, and large units hardly ever go.

    Args:
        model: The model that the scores are of. It is not changed; its weights do not count.
        spec: The symmetries of the model.
        scores: Parameter name -> scores in its shape, as :func:`~hf_lottery.pruning.score_weights` returns them. They
            must cover all parameters with two or more axes that a chosen group lies on; others may be left out.
        sparsity: Fraction of units removed in the result, in [0, 1), including those that ``within`` removed.
        scope: Which groups compete: :func:`~hf_lottery.pruning.global_ranking`, or
            :func:`~hf_lottery.pruning.uniform`, which prunes each group on its own to the same sparsity.
        reduce: What makes a unit's score of its weights' scores: :func:`unit_mean`, :func:`unit_sum` or
            :func:`unit_max`, or your own.
        include: The groups to prune, as for :meth:`~hf_lottery.symmetry.PermutationSpec.select`. By default those that
            :func:`unit_candidates` names. Name the groups to cut nested ones, such as the dimensions of each head.
        exclude: Groups to leave out, as for ``select``.
        multiple: The number of units that stays is a multiple of this, for every index of the parents: 8 or 16 suit
            the hardware. One number for all groups, or patterns of groups -> number.
        minimum: As many units stay at least for every index of the parents, or all if there are fewer. One number for
            all groups, or patterns of groups -> number.
        within: A mask of the same groups to prune further.

    Returns:
        The mask of the units. It covers the parameters with two or more axes that the chosen groups lie on.

    Raises:
        ValueError: ``sparsity`` is out of range, ``multiple`` does not divide a group, ``minimum`` is below 1, a score
            is NaN, or ``within`` already removed more.
        SymmetryError: A pattern matches no group, or a chosen group is frozen.
        SpecMismatchError: The spec, or ``within``, is of another model.
        MaskMismatchError: Scores are missing or do not fit.

    Example:
        >>> from torch import nn
        >>> from hf_lottery import discover, score_weights, uniform
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> spec = discover(model, (torch.ones(3, 4),))
        >>> mask = prune_units(model, spec, score_weights(model), sparsity=0.5, scope=uniform)
        >>> {group: int(kept.sum()) for group, kept in mask.units.items()}
        {'0.weight[0]': 4}
    """
    sparsity = checked_fraction("sparsity", sparsity)
    spec.check_fits(model)
    matrices = list(matrices_of(model))
    chosen = _chosen(spec, matrices, include, exclude)
    covered = covered_by(spec, chosen, names=matrices)
    if missing := [name for name in covered if name not in scores]:
        raise MaskMismatchError(
            f"scores must hold every parameter that a chosen group lies on; received none of {missing[0]!r}. "
            "score_weights(model) scores all; or exclude the group."
        )
    wanted = unit_scores(spec, {name: scores[name] for name in covered}, reduce=reduce, include=chosen)
    request, ranked = _request(spec, wanted, sparsity, multiple, minimum, within)
    keep = scope(request)
    units = {group: one.units(keep[group]).reshape(spec.entry_shape(group)) for group, one in ranked.items()}
    return UnitMask(units, spec, names=covered)


def _chosen(spec: Structure, matrices: list[str], include: Patterns | None, exclude: Patterns | None) -> list[str]:
    """The groups to prune, in the order of the spec."""
    if include is None:
        default = [group for group in unit_candidates(spec) if covered_by(spec, [group], names=matrices)]
        chosen = select_names(
            spec.groups, exclude=exclude, what="a group", default=default, error=SymmetryError,
            hint=lambda pattern: "list(spec.groups) shows all names.",
        )  # fmt: skip
    else:
        chosen = spec.select(include, exclude=exclude)
    for group in chosen:
        if (why := spec.groups[group].frozen) is not None:
            raise SymmetryError(f"a group must be free to be pruned; received {group!r}, frozen: {why}. Exclude it.")
    if not chosen:
        raise SymmetryError(
            f"at least one group must be chosen; received none of {len(spec.free)} free ones. Name groups with "
            "include; print(spec) shows them."
        )
    return chosen


def _request(
    spec: Structure,
    scores: Mapping[str, Tensor],
    sparsity: float,
    multiple: PerGroup,
    minimum: PerGroup,
    within: UnitMask | None,
) -> tuple[PruneRequest, dict[str, _Ranked]]:
    """What the scope is asked, and the ranks that turn its answer into units."""
    multiples, least = _per_group("multiple", multiple, scores), _per_group("minimum", minimum, scores)
    alive = _alive(spec, scores, within)
    ranked, floors = {}, {}
    for group, score in scores.items():
        _check_multiple(group, multiples[group], alive[group])
        ranked[group] = one = _ranked(score, alive[group], multiples[group])
        bundles = min(math.ceil(least[group] / multiples[group]), int(one.alive[:, 0].sum()))
        floors[group] = bundles * one.alive.shape[1]
    before = None if within is None else Mask({group: one.alive for group, one in ranked.items()})
    request = UnitRequest({group: one.scores for group, one in ranked.items()}, sparsity, 0, before, floors).only(
        scores
    )
    gone = request.total - sum(request.left().values())
    if request.gone < gone:
        raise ValueError(
            f"sparsity must be at least {gone / request.total:.6g}, because `within` removed {gone} of {request.total} "
            f"units; received {sparsity:.6g}. Raise it, or drop `within`."
        )
    return request, ranked


def _alive(spec: Structure, groups: Iterable[str], within: UnitMask | None) -> dict[str, Tensor]:
    if within is None:
        return {group: torch.ones(spec.entry_shape(group), dtype=torch.bool) for group in groups}
    within.check_spec(spec)
    if only := within.units.keys() ^ set(groups):
        raise MaskMismatchError(f"`within` must be of the chosen groups; received {min(only)!r} in one of both only.")
    return within.units


def _check_multiple(group: str, multiple: int, alive: Tensor) -> None:
    """Check that a multiple divides the units of a group, and what is left of them."""
    size, left = alive.shape[-1], int(alive.reshape(-1, alive.shape[-1])[0].sum())
    if size % multiple or left % multiple:
        what = f"has {size} units" if size % multiple else f"has {left} units left in `within`"
        raise ValueError(
            f"multiple must divide the units of every group; received {multiple} for {group!r}, which {what}. "
            "Pass patterns of groups, such as multiple={'mlp': 8}, or exclude the group."
        )


def _ranked(score: Tensor, alive: Tensor, multiple: int) -> _Ranked:
    """Sort the units of a group, those that are gone first, and bundle them."""
    size = score.shape[-1]
    rows, live = score.cpu().reshape(-1, size), alive.reshape(-1, size)
    order = rows.argsort(dim=1, stable=True)
    order = order.gather(1, live.gather(1, order).byte().argsort(dim=1, stable=True))
    shape = (size // multiple, len(rows) * multiple)
    bundled = rows.gather(1, order).reshape(len(rows), shape[0], multiple)
    left = live.gather(1, order)[0].reshape(shape[0], multiple)[:, :1]  # the same in every row
    return _Ranked(order, bundled.mean(dim=(0, 2)).unsqueeze(1).expand(shape), left.expand(shape))


def _per_group(what: str, value: PerGroup, groups: Iterable[str]) -> dict[str, int]:
    """The number of each group, from one for all or one for each pattern."""
    found, names = dict.fromkeys(groups, 1), list(groups)
    for pattern, number in ({".*": value} if isinstance(value, int) else value).items():
        if type(number) is not int or number < 1:
            reason = " A group that is cut to nothing cuts the network in two." if what == "minimum" else ""
            raise ValueError(f"{what} must be a whole number from 1 on; received {number!r}.{reason}")
        found |= dict.fromkeys(select_names(names, include=pattern, what="a chosen group"), number)
    return found
