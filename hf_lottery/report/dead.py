"""Dead units: neurons and heads that a mask removes altogether."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DeadUnits:
    """What a mask leaves nothing of, in one parameter.

    Attributes:
        rows: Neurons that there are: the length of the first axis.
        neurons: Which of them have no weight left.
        heads: Heads that there are; 0 if the parameter has none.
        dead_heads: Which of them have no weight left.
    """

    rows: int
    neurons: tuple[int, ...]
    heads: int = 0
    dead_heads: tuple[int, ...] = ()


def dead_units(mask: Mapping[str, Tensor], heads: Mapping[str, int] | None = None) -> dict[str, DeadUnits]:
    """Find the neurons and heads that a mask removes altogether.

    A neuron is a row, an index of the first axis: an output of ``nn.Linear``, a channel of a convolution.

    Args:
        mask: Parameter name -> bool tensor, True keeps. Those with fewer than two axes are left out.
        heads: Regular expression of parameters -> how many heads, equal shares of the rows, they are made of. The first
            that is found in a name counts.

    Raises:
        ValueError: The rows of a parameter are not divisible among its heads.

    Example:
        >>> import torch
        >>> entry = torch.tensor([[True, False], [False, False], [False, False], [False, False]])
        >>> dead_units({"query.weight": entry}, heads={"query": 2})
        {'query.weight': DeadUnits(rows=4, neurons=(1, 2, 3), heads=2, dead_heads=(1,))}
    """
    found = {}
    for name, entry in mask.items():
        if entry.ndim > 1:
            counts = (count for pattern, count in (heads or {}).items() if re.search(pattern, name))
            found[name] = _dead(name, entry, next(counts, 0))
    return found


def _dead(name: str, entry: Tensor, heads: int) -> DeadUnits:
    alive = entry.flatten(1).any(1)
    if not heads:
        return DeadUnits(len(alive), _zeros(alive))
    if heads < 1 or len(alive) % heads:
        raise ValueError(
            f"the rows of {name!r} must be divisible among its heads; received {len(alive)} rows and {heads} heads. "
            "Give the number of heads of this parameter."
        )
    return DeadUnits(len(alive), _zeros(alive), heads, _zeros(alive.view(heads, -1).any(1)))


def _zeros(alive: Tensor) -> tuple[int, ...]:
    return tuple((~alive).nonzero().flatten().tolist())
