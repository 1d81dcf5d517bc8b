"""Reads: what a forward pass cut out of a tensor, and which parts of that tensor it never read.

A table of positions that is read by a slice (``table[:, :n]``) has rows that a pass over short inputs leaves out. They
lie on the same axes as the rows that were read, although no operation says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .layout import reunite
from .nodes import Layout, Node, factors, freeze

_IN_PART = "read in part, at places that may depend on the input"
_Place = tuple[int, tuple[int, ...], tuple[int, ...], int]  # size of an element, shape, strides, offset


def memory(tensor: Tensor) -> int:
    """Return a number that tensors share if they show the same memory."""
    try:
        return tensor.untyped_storage()._cdata
    except RuntimeError:
        return id(tensor)


class Reads:
    """The tensors that were cut during a pass, and the places in memory whose values an operation used."""

    def __init__(self) -> None:
        self.cuts: list[tuple[Tensor, int, Layout]] = []
        self.uses: list[tuple[list[tuple[int, _Place]], set[int]]] = []  # what was used, and the memory it made
        self.keep: dict[int, Tensor] = {}  # memory is known by its number only while a tensor holds it

    def cut(self, source: Tensor, axis: int, layout: Layout) -> None:
        """Record that an axis of a tensor was cut.

        Args:
            source: The tensor.
            axis: The axis.
            layout: The layout of that axis.
        """
        self.cuts.append((source, axis, layout))

    def use(self, *tensors: Tensor, made: Iterable[Tensor] = ()) -> None:
        """Record that the values of tensors were used, and not only shown by another view.

        Args:
            tensors: The tensors.
            made: The tensors that were made of them. The use counts only if one of these is used in turn. By default
                the values leave the pass.
        """
        used, made = [*tensors], [*made]
        self.keep |= {memory(tensor): tensor for tensor in (*used, *made)}
        self.uses.append(([(memory(tensor), _place(tensor)) for tensor in used], {memory(tensor) for tensor in made}))

    def use_by(self, operands: Iterable[Tensor], results: Sequence[Tensor], targets: Sequence[Any]) -> None:
        """Record the use of an operation's operands; an operation that makes a view uses nothing.

        Args:
            operands: The tensors that went in.
            results: The tensors that came out.
            targets: The operands that the operation wrote to.
        """
        shown = {memory(tensor) for tensor in results if not any(tensor is target for target in targets)}
        if used := [tensor for tensor in operands if memory(tensor) not in shown]:
            self.use(*used, made=results)

    def settle(self) -> None:
        """Let the parts of a tensor that were never used follow those that were; freeze the axis that was cut."""
        places = self._places() if self.cuts else {}
        for source, axis, layout in self.cuts:
            nodes, used = factors(layout), _used(places.get(memory(source), set()), source, axis)
            if used is None:
                continue
            for i, node in enumerate(nodes):
                inner = math.prod(n.size for n in nodes[i + 1 :])
                here = np.any(used.reshape(-1, node.size, inner), axis=(0, 2))
                if (
                    node.kind == "sum"
                    and not node.stacked
                    and here.any()
                    and not all(here[start:stop].any() for start, stop in _parts(node))
                ):
                    reunite(node)
                    freeze([node], _IN_PART)

    def _places(self) -> dict[int, set[_Place]]:
        """Return, by memory, the places whose values reach what leaves the pass."""
        places: dict[int, set[_Place]] = {}
        for used, made in reversed(self.uses):
            if not made or made & places.keys():
                for at, place in used:
                    places.setdefault(at, set()).add(place)
        return places


def _used(places: set[_Place], source: Tensor, axis: int) -> np.ndarray | None:
    """Tell for each index of an axis whether any value there was used; None if all of the tensor was, or nothing."""
    if not places or _place(source) in places or not source.numel():
        return None
    unit = min(place[0] for place in {*places, _place(source)})
    used = torch.zeros(source.untyped_storage().nbytes() // unit, dtype=torch.bool)
    for place in places:
        _view(used, place, unit).fill_(True)
    shown = _view(used, _place(source), unit).numpy()  # whose reductions of bools take a tenth of torch's time
    return np.asarray(shown.any(axis=tuple(i for i in range(shown.ndim) if i != axis % source.ndim)))


def _place(tensor: Tensor) -> _Place:
    if tensor.layout != torch.strided:
        return 1, (), (), 0
    return tensor.element_size(), tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _view(used: Tensor, place: _Place, unit: int) -> Tensor:
    """Show a place of a memory in a tensor that has one element for each ``unit`` bytes of it."""
    size, shape, strides, offset = place
    steps = size // unit
    return used.as_strided((*shape, steps), (*(step * steps for step in strides), 1), offset * steps)


def _parts(node: Node) -> Iterator[tuple[int, int]]:
    start = 0
    for part in node.parts:
        yield start, start + part.size
        start += part.size
