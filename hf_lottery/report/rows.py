"""Empty rows: neurons and heads of a weight of which a mask keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..networks.display import TableDict
from ..networks.selection import Patterns, select_names


@dataclass(frozen=True)
class EmptyRows:
    """The neurons and heads of one parameter of which a mask keeps nothing.

    Attributes:
        rows: The number of neurons, which is the length of the first axis.
        neurons: Indices of the neurons without any weight left.
        heads: The number of heads; 0 if the parameter has no heads.
        dead_heads: Indices of the heads without any weight left.
    """

    rows: int
    neurons: tuple[int, ...]
    heads: int = 0
    dead_heads: tuple[int, ...] = ()

    def __repr__(self) -> str:
        heads = f", {len(self.dead_heads)} of {self.heads} heads" if self.heads else ""
        return f"EmptyRows({len(self.neurons)} of {self.rows} neurons{heads})"


class EmptyTable(TableDict[EmptyRows]):
    """Parameter name -> :class:`EmptyRows`; a dict that prints as a table."""

    header = ("parameter", "empty neurons", "neurons", "empty heads", "heads")

    def row(self, name: str, value: EmptyRows) -> Sequence[str]:
        return name, *map(str, (len(value.neurons), value.rows, len(value.dead_heads), value.heads))


def empty_rows(
    mask: Mapping[str, Tensor],
    *,
    heads: Mapping[str, int] | None = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
) -> EmptyTable:
    """Find the neurons and heads of which a mask keeps no weight that they receive through.

    A neuron is a row, an index of the first axis: an output of ``nn.Linear``, a channel of a convolution. This looks at
    each parameter by itself. Which units do nothing for the network, so that they can be cut, is found by
    :func:`hf_lottery.structured.dead_units` with a spec.

    Args:
        mask: Parameter name -> bool tensor, True keeps. Parameters with fewer than two axes are left out.
        heads: Name or regular expression of parameters -> the number of heads that share their rows equally. If several
            match a parameter, the first counts. One that matches no parameter is ignored.
        include: Names or regular expressions of the parameters to look at; by default all.
        exclude: Names or regular expressions of the parameters to leave out again.

    Raises:
        ValueError: The rows of a parameter are not divisible among its heads, or a pattern to include or exclude
            matches no parameter.

    Example:
        >>> import torch
        >>> entry = torch.tensor([[True, False], [False, False], [False, False], [False, False]])
        >>> empty_rows({"query.weight": entry}, heads={"query": 2})
        parameter     empty neurons  neurons  empty heads  heads
        query.weight              3        4            1      2
    """
    names = select_names([name for name, entry in mask.items() if entry.ndim > 1], include=include, exclude=exclude)
    counts: dict[str, int] = {}
    for pattern, count in (heads or {}).items():
        for name in select_names(names, include=pattern, optional=True):
            counts.setdefault(name, count)
    return EmptyTable({name: _empty(name, mask[name], counts.get(name, 0)) for name in names})


def _empty(name: str, entry: Tensor, heads: int) -> EmptyRows:
    alive = entry.flatten(1).any(1)
    if not heads:
        return EmptyRows(len(alive), _zeros(alive))
    if heads < 1 or len(alive) % heads:
        raise ValueError(
            f"the rows of {name!r} must be divisible among its heads; received {len(alive)} rows and {heads} heads. "
            "Give the number of heads of this parameter."
        )
    return EmptyRows(len(alive), _zeros(alive), heads, _zeros(alive.view(heads, -1).any(1)))


def _zeros(alive: Tensor) -> tuple[int, ...]:
    return tuple((~alive).nonzero().flatten().tolist())
