"""Origins: which axes of a parameter lie on the axes of a tensor that shows it, or that was copied from it.

A product of a weight and an activation sums over one axis of the weight. The operation only sees some tensor: the
weight itself, a slice of a fused one, the weights of the experts that some tokens chose. Its axes are followed back to
the parameter by the strides of views, and through copies by what each operation does to axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .reads import memory

Origin = tuple[frozenset[tuple[str, int]], ...]  # for each axis of a tensor, the axes of parameters that lie on it

# Operations that put values elsewhere along the same axes, and operations that keep every value in its place.
_MOVES = {"cat", "clone", "_to_copy", "constant_pad_nd", "contiguous", "copy", "flip", "gather", "index_select",
          "repeat", "roll"}  # fmt: skip
_KEEPS = {"_weight_norm_interface", "batch_norm", "native_batch_norm"}  # and all pointwise ones


class Origins:
    """The tensors of a pass that hold nothing but values of parameters, and which axes of which.

    Attributes:
        contracted: Name of a parameter -> its axes that were summed over in a product with something else.
    """

    def __init__(self) -> None:
        self.contracted: dict[str, set[int]] = {}
        self._bases: dict[int, list[tuple[Tensor, Origin]]] = {}  # by memory

    def add(self, name: str, tensor: Tensor) -> None:
        """Let a parameter be its own origin."""
        self._add(tensor, tuple(frozenset([(name, axis)]) for axis in range(tensor.ndim)))

    def of(self, tensor: Tensor) -> Origin | None:
        """Return which axes of parameters lie on each axis of a tensor; None if it holds something else."""
        found = [_seen_by(tensor, *base) for base in self._bases.get(memory(tensor), ()) if _within(tensor, base[0])]
        return tuple(frozenset().union(*sets) for sets in zip(*found, strict=True)) if found else None

    def contract(self, *operands: tuple[Tensor, int]) -> bool:
        """Record a sum over an axis of each of some operands; return whether one of them is a weight.

        Args:
            operands: Tensors and the axis of each. Of several that hold parameters the last one is the weight, as the
                others may be learned inputs.
        """
        for tensor, axis in reversed(operands):
            if (origin := self.of(tensor)) is not None:
                for name, place in origin[axis]:
                    self.contracted.setdefault(name, set()).add(place)
                return True
        return False

    def follow(self, func: Any, results: Iterable[Any], args: Any, constant: Callable[[Tensor], bool]) -> None:
        """Record the origin of what an operation made of parameters and constants alone.

        An operation that is not known here makes an activation.

        Args:
            func: The operation.
            results: What it returned.
            args: Its arguments.
            constant: Tells whether a tensor depends on neither parameters nor inputs.
        """
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        moves, keeps = name in _MOVES, name in _KEEPS or torch.Tag.pointwise in func.tags
        operands = [value for value in tree_leaves(args) if isinstance(value, Tensor) and value.is_floating_point()]
        origins = [(tensor, self.of(tensor)) for tensor in operands]
        known = {memory(tensor) for tensor, origin in origins if origin is not None}
        if not known:
            return
        for out in results:
            # A view shows the memory of its source, whose origin is known.
            if isinstance(out, Tensor) and out.is_floating_point() and memory(out) not in known:
                if name in ("index", "_unsafe_index"):
                    self._add(out, _looked_up(origins[0][1] or (), args[1], out.ndim))
                elif name == "stack":
                    at = (args[1] if len(args) > 1 else 0) % out.ndim
                    shown = _joined([o for _, o in origins if o is not None], out.ndim - 1)
                    self._add(out, (*shown[:at], frozenset(), *shown[at:]))
                elif (moves or keeps) and all(o or tensor is out or constant(tensor) for tensor, o in origins):
                    shown = [(t.shape, o) for t, o in origins if o is not None and t.ndim <= out.ndim]
                    self._add(out, _joined([_whole(*one, out.shape, moves) for one in shown], out.ndim))

    def _add(self, tensor: Tensor, axes: Origin) -> None:
        if tensor.layout is torch.strided and tensor.numel():
            self._bases.setdefault(memory(tensor), []).append((tensor, axes))


def _whole(shape: Sequence[int], origin: Origin, new: Sequence[int], everywhere: bool) -> Origin:
    """Return the origins of the axes that keep their length, or of all of them; axes are aligned from the right."""
    lead = len(new) - len(shape)
    kept = (o if everywhere or shape[i] == new[lead + i] else frozenset() for i, o in enumerate(origin))
    return (*[frozenset()] * lead, *kept)


def _joined(origins: Sequence[Origin], ndim: int) -> Origin:
    return tuple(frozenset().union(*(origin[i] for origin in origins)) for i in range(ndim))


def _looked_up(origin: Origin, indices: Sequence[Tensor | None], ndim: int) -> Origin:
    """Return the origins after a lookup: the axes of the positions stand where the axes were that they index."""
    used = [i for i, entry in enumerate(indices) if entry is not None]
    if any(entry is not None and entry.dtype in (torch.bool, torch.uint8) for entry in indices):
        return (frozenset(),) * ndim  # a mask stands for several axes
    rest = [i for i in range(len(origin)) if i not in used]
    at = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    new = [origin[used[0]] if len(used) == 1 else frozenset()] * (ndim - len(rest))
    return (*(origin[i] for i in rest[:at]), *new, *(origin[i] for i in rest[at:]))


def _seen_by(view: Tensor, base: Tensor, axes: Origin) -> Origin:
    """Return the origins of a view's axes: those of the axes of its base that they walk along, by their strides."""
    steps = [(step, step * size, origin) for step, size, origin in zip(base.stride(), base.shape, axes, strict=True)
             if size > 1]  # fmt: skip
    return tuple(
        frozenset().union(*(origin for start, stop, origin in steps if step < stop and start < step * size))
        if size > 1
        else frozenset()
        for step, size in zip(view.stride(), view.shape, strict=True)
    )


def _within(view: Tensor, base: Tensor) -> bool:
    """Tell whether all elements of a view lie between the first and the last one of its base."""
    if view.layout is not torch.strided or view.dtype != base.dtype or not view.numel():
        return False
    (first, last), (start, stop) = _span(view), _span(base)
    return start <= first and last <= stop


def _span(tensor: Tensor) -> tuple[int, int]:
    first = int(tensor.storage_offset())
    return first, first + sum(step * (size - 1) for step, size in zip(tensor.stride(), tensor.shape, strict=True))
