"""Scopes: which weights compete with which when a network is pruned.

A scope is a function ``scope(request) -> {name: bool tensor}``, passed as a value. To write a new one, split the
request and give each part to one of the scopes here. This one ranks within every transformer layer:

    def per_layer(request):
        keep = {}
        for layer in {name.rpartition(".layers.")[2].split(".")[0] for name in request.scores}:
            keep |= global_ranking(request.only([name for name in request.scores if f".layers.{layer}." in name]))
        return keep

It must return an entry for every name of ``request.scores``, keep nothing that ``request.within`` removed, and leave
``request.floors`` weights in each tensor. The scopes here do all of this for the part they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..masks.mask import Mask
from ..storage.encoding import count_ones
from .selection import keep_highest_of_groups, remove_lowest


@dataclass(frozen=True)
class PruneRequest:
    """The request that a scope answers: how many weights of which tensors to remove.

    Attributes:
        scores: Parameter name -> floating tensor. The highest scores stay.
        sparsity: The requested fraction in [0, 1).
        gone: How many of these weights the result must lack, including those that ``within`` removed.
        within: The mask to start from, or None if no weight was removed before.
        floors: Parameter name -> the smallest number of its weights to keep.
    """

    scores: Mapping[str, Tensor]
    sparsity: float
    gone: int
    within: Mask | None
    floors: Mapping[str, int]

    def only(self, names: Iterable[str], *, gone: int | None = None) -> PruneRequest:
        """Return the same request for some tensors; ``gone`` is ``round(sparsity * n)`` over them unless given."""
        part = replace(self, scores={name: self.scores[name] for name in names})
        return replace(part, gone=round(part.sparsity * part.total) if gone is None else gone)

    @property
    def total(self) -> int:
        """Number of weights, removed ones included."""
        return sum(score.numel() for score in self.scores.values())

    def left(self) -> dict[str, int]:
        """Return how many weights each tensor has before pruning."""
        if self.within is None:
            return {name: score.numel() for name, score in self.scores.items()}
        return {name: count_ones(self.within[name]) for name in self.scores}

    def to_remove(self) -> int:
        """Return how many weights still have to be removed.

        Raises:
            ValueError: ``within`` already removed more than requested, or the floors protect too many weights.
        """
        names = sorted(self.scores)
        gone, floor = self.total - sum(self.left().values()), sum(self.floors[name] for name in names)
        what = f"the sparsity of {names[0]!r}" if len(names) == 1 else f"the sparsity of {len(names)} tensors"
        received = f"received {self.sparsity:.6g}, which removes {self.gone} of {self.total} weights"
        if self.gone < gone:
            raise ValueError(
                f"{what} must be at least {gone / self.total:.6g}, because `within` removed {gone}; {received}. "
                "Raise the sparsity, or drop `within`."
            )
        if self.gone > self.total - floor:
            tight = max(names, key=self.floors.__getitem__)
            raise ValueError(
                f"{what} must leave the {floor} weights that min_density protects, {self.floors[tight]} of them in "
                f"{tight!r}; {received}. Lower the sparsity or min_density."
            )
        return self.gone - gone


Scope = Callable[[PruneRequest], Mapping[str, Tensor]]


def global_ranking(request: PruneRequest) -> dict[str, Tensor]:
    """Rank the weights of all tensors together: every weight competes with every other.

    A tensor at its floor loses no more weights, and the other tensors lose the rest. The result is the same as removing
    one weight after the other, lowest first, and skipping protected ones.
    """
    pool, remove, keep = dict(request.scores), request.to_remove(), {}
    while True:
        keep |= remove_lowest(pool, remove, alive=request.within)
        # Without these tensors the threshold only rises, so a tensor that falls below its floor now does so later too.
        over = [name for name in pool if request.floors[name] and count_ones(keep[name]) < request.floors[name]]
        if not over:
            return keep
        left = request.only(over).left()
        for name in over:
            gives = left[name] - request.floors[name]
            keep |= remove_lowest({name: pool.pop(name)}, gives, alive=request.within)
            remove -= gives


def uniform(request: PruneRequest) -> dict[str, Tensor]:
    """Prune every tensor on its own to the same sparsity: remove ``round(sparsity * n)`` of its ``n`` weights."""
    keep = {}
    for name in request.scores:
        keep |= global_ranking(request.only([name]))
    return keep


def erk(request: PruneRequest) -> dict[str, Tensor]:
    """Prune by Erdős-Rényi-Kernel: density is proportional to the sum of a tensor's axis lengths over their product.

    Small tensors stay denser than large ones. A tensor that would exceed density 1, or what ``within`` left of it,
    keeps all it has, and the others share the rest in proportion.

    Reference:
        Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, 2018
        (arXiv:1707.04780); with kernel axes, Evci et al., Rigging the Lottery, 2020 (arXiv:1911.11134). Our total is
        exact: counts are rounded by largest remainders in integer arithmetic, and ties are broken by name.
    """
    request.to_remove()
    left, budget = request.left(), request.total - request.gone
    # In density times size the product of the axis lengths cancels, which leaves integers.
    share = {name: max(sum(score.shape), 1) for name, score in request.scores.items()}
    free, quota = sorted(share), {}
    while True:
        shares = sum(share[name] for name in free)
        full = [name for name in free if budget * share[name] > left[name] * shares]
        if not full:
            break
        quota |= {name: left[name] for name in full}
        budget -= sum(left[name] for name in full)
        free = [name for name in free if name not in quota]
    quota |= {name: budget * share[name] // shares for name in free}
    rest = budget - sum(quota[name] for name in free)
    for name in sorted(free, key=lambda name: -(budget * share[name] % shares))[:rest]:
        quota[name] += 1
    keep = {}
    for name, score in request.scores.items():
        keep |= global_ranking(request.only([name], gone=score.numel() - quota[name]))
    return keep


def n_of_m(n: int, m: int, *, axis: int | Mapping[str, int] = 1) -> Scope:
    """Make a scope that keeps the ``n`` highest of every ``m`` consecutive weights along an axis; GPUs support 2 of 4.

    Args:
        n: How many weights of a group stay, from 1 to ``m``. The sparsity passed to prune must be ``1 - n / m``.
        m: Length of a group. It must divide the length of the axis.
        axis: The input axis: 1 for ``nn.Linear`` and convolutions, 0 for GPT-2's ``Conv1D``; or parameter name -> axis.

    Raises:
        ValueError: ``n`` is not in [1, m].

    Example:
        >>> import torch
        >>> from hf_lottery import prune
        >>> mask = prune({"fc": torch.tensor([[1.0, 4.0, 2.0, 3.0]])}, 0.5, scope=n_of_m(2, 4))
        >>> mask["fc"]
        tensor([[False,  True, False,  True]])

    Reference:
        Zhou et al., Learning N:M fine-grained structured sparse neural networks from scratch, 2021 (arXiv:2102.04010);
        Mishra et al., Accelerating sparse deep neural networks, 2021 (arXiv:2104.08378). Here the first of equal scores
        in a group are removed.
    """
    if not 1 <= n <= m:
        raise ValueError(f"n_of_m must keep from 1 to m weights; received n={n}, m={m}. GPUs support n_of_m(2, 4).")

    def scope(request: PruneRequest) -> dict[str, Tensor]:
        if not math.isclose(request.sparsity, 1 - n / m, abs_tol=1e-9):
            raise ValueError(
                f"the sparsity of n_of_m({n}, {m}) must be 1 - {n}/{m} = {1 - n / m:.6g}; "
                f"received {request.sparsity:.6g}. Pass that sparsity, or another n_of_m."
            )
        axes = {name: axis if isinstance(axis, int) else axis[name] for name in request.scores}
        for name, score in request.scores.items():
            _check_groups(name, score, axes[name], n, m, request.floors[name])
        moved = {name: score.movedim(axes[name], -1) for name, score in request.scores.items()}
        alive = request.within and {name: request.within[name].movedim(axes[name], -1) for name in moved}
        keep = keep_highest_of_groups(moved, n, m, alive=alive)
        return {name: entry.movedim(-1, axes[name]) for name, entry in keep.items()}

    return scope


def _check_groups(name: str, score: Tensor, axis: int, n: int, m: int, floor: int) -> None:
    shape = list(score.shape)
    if len(shape) < 2 or not -len(shape) <= axis < len(shape) or shape[axis] % m:
        raise ValueError(
            f"{name!r} must have at least two axes, and {m} must divide its length on axis {axis}; "
            f"received shape {shape}. Exclude it, or choose another axis or m."
        )
    if (kept := score.numel() // m * n) < floor:
        raise ValueError(
            f"min_density must be at most {n}/{m} for n_of_m({n}, {m}); it protects {floor} weights of {name!r}, "
            f"but only {kept} stay. Lower it."
        )
