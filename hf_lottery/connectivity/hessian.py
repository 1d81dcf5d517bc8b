"""Hessian: how sharply the loss curves at a network.

References:
    Yao, Gholami, Keutzer and Mahoney, 2020, "PyHessian: Neural Networks Through the Lens of the Hessian",
    arXiv:1912.07145.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..masks.mask import Mask
from ..networks.names import named_weights
from ..networks.selection import Patterns, select_names

Vector = list[Tensor]


class TopEigenvalue(NamedTuple):
    """The largest eigenvalue of a Hessian, as :func:`top_hessian_eigenvalue` returns it.

    Attributes:
        value: The largest eigenvalue of the Hessian.
        residual: Euclidean norm of ``H v - value * v`` for the unit vector ``v`` that was found. An eigenvalue lies
            within this distance of ``value``.
        iterations: The number of products with the Hessian.
        converged: Whether the residual fell below the tolerance.
    """

    value: float
    residual: float
    iterations: int
    converged: bool

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        return f"TopEigenvalue({self.value:.6g}, residual {self.residual:.2g}, {self.iterations} products, {state})"


def top_hessian_eigenvalue(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    iterations: int = 100,
    tolerance: float = 1e-2,
    seed: int = 0,
    mask: Mask | None = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
) -> TopEigenvalue:
    """Find the largest eigenvalue of the Hessian of a loss, by power iteration on Hessian-vector products.

    The loss and its gradient are computed once; every iteration is one more backward pass through them. Power iteration
    finds the eigenvalue of largest magnitude. If that one is negative, or if a negative one of the same magnitude keeps
    the iteration from converging, a second iteration on the shifted spectrum finds the largest. The value lies below
    the largest eigenvalue by about the square of the residual, if the next eigenvalue is far away.

    Args:
        model: The network; not changed. Put it in eval mode first. Frozen parameters do not count.
        loss: Returns the loss of a network as a tensor without dimensions, such as the mean over one large batch.
        iterations: The most products with the Hessian, in each of the two iterations.
        tolerance: The iteration stops when the residual is at most this fraction of the eigenvalue's magnitude.
        seed: Seed of the first vector; the same seed gives the same value.
        mask: Of the parameters that the mask covers, only the weights that it keeps count.
        include: Names or regular expressions of the parameters that count; by default all trainable ones.
        exclude: Names or regular expressions of the parameters to leave out again.

    Raises:
        ValueError: A pattern matches no trainable parameter, none is left, or the loss is not one number that depends
            on the parameters.
        MaskMismatchError: The mask is for another model.

    Example:
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> scale = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
        >>> found = top_hessian_eigenvalue(model, lambda m: (scale * m.weight.square()).sum(), tolerance=1e-6)
        >>> round(found.value, 6), found.converged
        (6.0, True)

    Reference:
        Yao et al., 2020, arXiv:1912.07145. Their code returns the eigenvalue of largest magnitude, and stops when it no
        longer changes, which says little about its error.
    """
    chosen = _chosen(model, include, exclude)
    if mask is not None:
        mask.check_fits(model)
    keeps = [mask[n].to(p.device) if mask is not None and n in mask else None for n, p in chosen.items()]
    multiply = _products(model, loss, list(chosen.values()), keeps)
    start = _start(list(chosen.values()), keeps, seed)
    found, size = _iterate(multiply, start, 0.0, iterations, tolerance)
    if found.value < 0 or not found.converged:
        shifted, _ = _iterate(multiply, start, -size, iterations, tolerance)
        best = max(found, shifted, key=lambda one: one.value)  # no quotient exceeds the largest eigenvalue
        found = best._replace(iterations=found.iterations + shifted.iterations)
    return found


def _iterate(
    multiply: Callable[[Vector], Vector], v: Vector, shift: float, iterations: int, tolerance: float
) -> tuple[TopEigenvalue, float]:
    """Run power iteration on ``H - shift``; return what it finds about H, and the length of the last product."""
    value, residual, size = 0.0, float("inf"), 0.0
    for done in range(1, iterations + 1):
        product = [p - shift * x for p, x in zip(multiply(v), v, strict=True)]
        value = _dot(product, v)
        residual = _norm([p - value * x for p, x in zip(product, v, strict=True)])
        size = _norm(product)
        if residual <= tolerance * abs(value + shift) or size == 0:
            return TopEigenvalue(value + shift, residual, done, True), size
        v = [p / size for p in product]
    return TopEigenvalue(value + shift, residual, iterations, False), size


def _products(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], chosen: Vector, keeps: list[Tensor | None]
) -> Callable[[Vector], Vector]:
    """A function that multiplies a vector by the Hessian, over the chosen parameters and under the mask."""
    options: Any = {"allow_unused": True, "materialize_grads": True}
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
        value = loss(model)
        if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
            received = list(value.shape) if isinstance(value, Tensor) and value.ndim else "one without a gradient"
            raise ValueError(f"loss must return a tensor without dimensions, with a gradient; received {received}.")
        gradients = torch.autograd.grad(value, chosen, create_graph=True, **options)
    curved = [k for k, gradient in enumerate(gradients) if gradient.requires_grad]

    def multiply(v: Vector) -> Vector:
        if not curved:
            return [torch.zeros_like(x) for x in v]
        outputs, along = [gradients[k] for k in curved], [v[k] for k in curved]
        product = torch.autograd.grad(outputs, chosen, along, retain_graph=True, **options)
        return _masked(list(product), keeps)

    return multiply


def _chosen(model: nn.Module, include: Patterns | None, exclude: Patterns | None) -> dict[str, Tensor]:
    """The parameters that count; a tied one is there once, under the first of its chosen names."""
    every = {name: p for name, p in named_weights(model, adapters=True).items() if p.requires_grad}
    chosen, seen = {}, set()
    for name in select_names(every, include=include, exclude=exclude, what="a trainable parameter"):
        if id(every[name]) not in seen:
            seen.add(id(every[name]))
            chosen[name] = every[name]
    if not chosen:
        raise ValueError("there must be a trainable parameter; received a model or a selection without any.")
    return chosen


def _start(chosen: Vector, keeps: list[Tensor | None], seed: int) -> Vector:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in chosen]
    drawn = _masked(drawn, keeps)
    size = _norm(drawn)
    if size == 0:
        raise ValueError("the mask must keep a weight of the parameters; received one that keeps none.")
    return [x / size for x in drawn]


def _masked(v: Vector, keeps: list[Tensor | None]) -> Vector:
    return [x if keep is None else x * keep for x, keep in zip(v, keeps, strict=True)]


def _dot(u: Vector, v: Vector) -> float:
    return sum(torch.sum(x * y, dtype=torch.float64).item() for x, y in zip(u, v, strict=True))


def _norm(v: Vector) -> float:
    return _dot(v, v) ** 0.5
