"""prune(): turn scores and a sparsity into a Mask."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from numbers import Real

from torch import Tensor

from ..masks.mask import Mask, MaskMismatchError
from ..networks.numbers import check_numbers
from ..storage.encoding import count_ones
from .scopes import PruneRequest, Scope, global_ranking


def prune(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: Scope = global_ranking,
    min_density: float = 0.0,
    within: Mask | None = None,
) -> Mask:
    """Remove the weights with the lowest scores: exactly ``round(sparsity * n)`` of all ``n`` weights.

    Equal scores are removed by sorted name, then flat position, so the mask does not depend on the order of
    ``scores``. A mask pruned ``within`` another is a subset of it.

    Args:
        scores: Parameter name -> floating tensor of any shape. The highest scores stay. The mask covers these names.
        sparsity: Fraction of weights removed in the result, in [0, 1), including those that ``within`` removed.
        scope: Which weights compete: :func:`global_ranking`, :func:`uniform` (exact per tensor instead of in total),
            :func:`erk`, :func:`n_of_m`, or your own; see ``scopes.py``.
        min_density: Smallest fraction in [0, 1] of every tensor to keep (rounded up); 0 protects nothing.
        within: A mask over the same names and shapes to prune further.

    Returns:
        The mask in the order of ``scores``. True keeps a weight.

    Raises:
        ValueError: An argument is out of range, a score is NaN or on the meta device, or sparsity, ``min_density`` and
            ``within`` contradict each other.
        TypeError: A score is not a floating tensor, or a fraction is not a number.
        MaskMismatchError: ``within`` is for other parameters.

    Warns:
        UserWarning: A tensor has no weight left, which usually cuts the network in two.

    Example:
        >>> import torch
        >>> from hf_lottery import uniform
        >>> scores = {"a": torch.tensor([[4.0, 1.0], [3.0, 2.0]]), "b": torch.tensor([[5.0, 6.0]])}
        >>> first = prune(scores, 0.5)
        >>> first["a"]
        tensor([[ True, False],
                [False, False]])
        >>> prune(scores, 0.5, scope=uniform)["b"]
        tensor([[False,  True]])
        >>> prune(scores, 2 / 3, min_density=0.25, within=first)["b"]
        tensor([[False,  True]])

    Reference:
        Frankle and Carbin, The lottery ticket hypothesis, 2019 (arXiv:1803.03635), prune layers or the whole network by
        magnitude. Our count is exact also with equal scores, and a layer can be protected from collapse, which
        Tanaka et al. describe (SynFlow, 2020, arXiv:2006.05467).
    """
    sparsity = checked_fraction("sparsity", sparsity)
    min_density = checked_fraction("min_density", min_density, closed=True)
    _check_scores(scores)
    if within is not None:
        within.check_fits(scores)
        if missing := scores.keys() - within.keys():
            raise MaskMismatchError(
                f"`within` must cover every name in scores; it lacks {min(missing)!r}. Score only what it covers."
            )
    # The tolerance is needed because 0.07 * 100 is slightly more than 7 in floating point.
    floors = {name: math.ceil(min_density * score.numel() - 1e-6) for name, score in scores.items()}
    request = PruneRequest(scores, sparsity, 0, within, floors).only(scores)
    for name, left in (request.left() if min_density else {}).items():
        if left < floors[name]:
            raise ValueError(
                f"min_density must not exceed what `within` left of {name!r}, {left} of {scores[name].numel()}; "
                f"received {min_density:.6g}, which asks for {floors[name]} weights. Lower it."
            )
    keep = scope(request)
    mask = Mask({name: keep[name] for name in scores}, copy=False)
    if empty := [name for name, entry in mask.items() if entry.numel() and not count_ones(entry)]:
        warnings.warn(
            f"no weight is left in {', '.join(map(repr, empty))}. Pass min_density to prevent this.", stacklevel=2
        )
    return mask


def checked_fraction(name: str, value: float, *, closed: bool = False) -> float:
    """Return a fraction as a float.

    Args:
        name: What it is, for the error messages.
        value: The fraction.
        closed: Whether it may be 1.

    Raises:
        ValueError: It is not in [0, 1), or [0, 1] if that is closed.
        TypeError: It is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; received {value!r}. Pass a fraction such as 0.8.")
    if not (0 <= value < 1 or (closed and value == 1)):
        interval = "[0, 1]" if closed else "[0, 1)"
        raise ValueError(f"{name} must be in {interval}; received {value}. Pass a fraction such as 0.8.")
    return float(value)


def _check_scores(scores: Mapping[str, Tensor]) -> None:
    check_numbers(scores)
    for name, score in scores.items():
        if not isinstance(score, Tensor) or not score.is_floating_point():
            received = score.dtype if isinstance(score, Tensor) else type(score).__name__
            raise TypeError(f"the scores of {name!r} must be a floating tensor; received {received}. Try `.float()`.")
    if not any(score.numel() for score in scores.values()):
        raise ValueError(
            f"scores must hold at least one weight; received {len(scores)} tensors without elements. "
            "Check which parameters are prunable."
        )
