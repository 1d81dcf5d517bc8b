"""Scopes: which weights compete with which when a network is pruned.

A scope is a function ``scope(request) -> {name: bool tensor}``, passed as a value. A new one is most easily made of the
ones here, by giving each its part of the request; this ranks within every transformer layer:

    def per_layer(request):
        keep = {}
        for layer in {name.rpartition(".layers.")[2].split(".")[0] for name in request.scores}:
            keep |= global_ranking(request.only([name for name in request.scores if f".layers.{layer}." in name]))
        return keep

It must return an entry for every name of ``request.scores``, keep nothing that ``request.within`` removed, and leave
``request.floors`` weights standing; the scopes here do all of it for the part they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..masks.mask import Mask
from .selection import keep_highest_of_groups, remove_lowest


@dataclass(frozen=True)
class PruneRequest:
    """What a scope is asked: how many weights of which tensors have to be gone.

    Attributes:
        scores: Parameter name -> floating tensor, higher stays.
        sparsity: The fraction in [0, 1) that was asked for.
        gone: How many of these weights must be gone in the result, those that ``within`` removed included.
        within: The mask to start from, or None when every weight is there.
        floors: Parameter name -> how many of its weights have to stay at least.
    """

    scores: Mapping[str, Tensor]
    sparsity: float
    gone: int
    within: Mask | None
    floors: Mapping[str, int]

    def only(self, names: Iterable[str], *, gone: int | None = None) -> PruneRequest:
        """The same request for some of the tensors; ``gone`` is then ``round(sparsity * n)`` over them, or given."""
        part = replace(self, scores={name: self.scores[name] for name in names})
        return replace(part, gone=round(part.sparsity * part.total) if gone is None else gone)

    @property
    def total(self) -> int:
        """Number of weights, gone or not."""
        return sum(score.numel() for score in self.scores.values())

    def left(self) -> dict[str, int]:
        """How many weights of each tensor are there before pruning."""
        if self.within is None:
            return {name: score.numel() for name, score in self.scores.items()}
        return {name: int(self.within[name].sum()) for name in self.scores}

    def to_remove(self) -> int:
        """How many weights still have to go.

        Raises:
            ValueError: Fewer have to be gone than are already, or more than the floors let go.
        """
        names = sorted(self.scores)
        gone, floor = self.total - sum(self.left().values()), sum(self.floors[name] for name in names)
        what = f"the sparsity of {names[0]!r}" if len(names) == 1 else f"the sparsity of {len(names)} tensors"
        received = f"received {self.sparsity:.6g}, that is {self.gone} of {self.total} weights"
        if self.gone < gone:
            raise ValueError(
                f"{what} must be at least {gone / self.total:.6g}, as `within` has removed {gone}; {received}. "
                "Ask for more, or drop `within`."
            )
        if self.gone > self.total - floor:
            tight = max(names, key=self.floors.__getitem__)
            raise ValueError(
                f"{what} must leave what min_density protects, {floor} weights, {self.floors[tight]} of them in "
                f"{tight!r}; {received}. Lower the sparsity or min_density."
            )
        return self.gone - gone


Scope = Callable[[PruneRequest], Mapping[str, Tensor]]


def global_ranking(request: PruneRequest) -> dict[str, Tensor]:
    """One ranking over all tensors: a weight competes with every other.

    A tensor at its floor gives no more, and the others give the rest: the result is that of removing weight by weight,
    lowest first, passing over those that may not go.
    """
    pool, remove, keep = dict(request.scores), request.to_remove(), {}
    left = request.left()
    while True:
        keep |= remove_lowest(pool, remove, alive=request.within)
        # Without the tensors at their floor the threshold only rises, so one that is over now stays over.
        over = [name for name in pool if int(keep[name].sum()) < request.floors[name]]
        if not over:
            return keep
        for name in over:
            gives = left[name] - request.floors[name]
            keep |= remove_lowest({name: pool.pop(name)}, gives, alive=request.within)
            remove -= gives


def uniform(request: PruneRequest) -> dict[str, Tensor]:
    """Every tensor at the same sparsity: ``round(sparsity * n)`` of its own ``n`` weights, ranked on their own."""
    keep = {}
    for name in request.scores:
        keep |= global_ranking(request.only([name]))
    return keep


def erk(request: PruneRequest) -> dict[str, Tensor]:
    """Erdős-Rényi-Kernel: the density of a tensor is proportional to the sum over the product of its axis lengths.

    Small tensors stay denser than large ones. A tensor that would exceed density 1, or what ``within`` has left of it,
    keeps what it has, and the others share the rest in proportion.

    Reference:
        Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, 2018
        (arXiv:1707.04780); with kernel axes, Evci et al., Rigging the Lottery, 2020 (arXiv:1911.11134). Ours: the
        total is exact, rounding by largest remainders in integer arithmetic, equal ones by name.
    """
    request.to_remove()
    left, budget = request.left(), request.total - request.gone
    # Density times size: the product cancels, which leaves integers.
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
    """The scope that keeps the ``n`` highest of every ``m`` consecutive weights along an axis; 2 of 4 is what GPUs run.

    Args:
        n: How many stay, from 1 to ``m``. The sparsity of the call must be ``1 - n / m``.
        m: Length of a group. It must divide the length of the axis.
        axis: The input axis: 1 of ``nn.Linear`` and convolutions, 0 of GPT-2's ``Conv1D``; or parameter name -> axis.

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
        Mishra et al., Accelerating sparse deep neural networks, 2021 (arXiv:2104.08378). Ours: of equal scores the
        first in the group go, as everywhere here.
    """
    if not 1 <= n <= m:
        raise ValueError(f"n_of_m must keep from 1 to m weights of m; received n={n}, m={m}. GPUs run n_of_m(2, 4).")

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
            f"the shape of {name!r} must have two axes or more and a length on axis {axis} that {m} divides; "
            f"received {shape}. Exclude it, or choose another axis or m."
        )
    if (kept := score.numel() // m * n) < floor:
        raise ValueError(
            f"min_density must be at most {n}/{m} for n_of_m({n}, {m}); received one that protects {floor} weights "
            f"of {name!r}, where {kept} stay. Lower it."
        )
