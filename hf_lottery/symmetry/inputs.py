"""Inputs: one call's arguments, checked, and the same at other lengths and sizes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .errors import SymmetryError

Inputs = Mapping[str, Any] | tuple[Any, ...]
T = TypeVar("T")
_Axes = Callable[[Tensor], Sequence[int]]
_Size = Callable[[int], int]

_MOST_KEPT = 2**26  # bytes
# The axes that may be lengths or sizes, by the number of axes of a floating input.
_SPATIAL = {2: [(1,)], 3: [(1,), (2,)], 4: [(2, 3)], 5: [(1,), (3, 4)]}


def checked_inputs(model: nn.Module, inputs: Any) -> Inputs:
    """Return inputs as a dict or a tuple, if they are one call's arguments.

    Raises:
        TypeError: They are no dict and no tuple.
        SymmetryError: The model's ``forward`` does not take them.
    """
    if not isinstance(inputs, Mapping | tuple):
        hint = {Tensor: "(x,) for a single tensor", list: "tuple(batch) for a list"}
        raise TypeError(
            f"inputs must be one call's arguments, a dict or a tuple; received {type(inputs).__name__}. "
            f"Write inputs={hint.get(type(inputs), 'next(iter(loader)) for one batch of a loader')}."
        )
    try:
        takes = inspect.signature(model.forward)
    except (TypeError, ValueError):  # some compiled modules have none
        return _plain(inputs)
    try:
        takes.bind(**inputs) if isinstance(inputs, Mapping) else takes.bind(*inputs)
    except TypeError as error:
        received = f"the keys {sorted(inputs)}" if isinstance(inputs, Mapping) else f"a tuple of {len(inputs)}"
        raise SymmetryError(
            f"inputs must be the arguments of {type(model).__name__}.forward; received {received} ({error}). "
            "Leave out what it does not take, such as targets."
        ) from error
    return _plain(inputs)


def _plain(inputs: Inputs) -> Inputs:
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def kept_inputs(inputs: Inputs) -> Inputs | None:
    """Return copies of inputs on the CPU; None if they are large or have no numbers."""
    tensors = [value for value in tree_leaves(inputs) if isinstance(value, Tensor)]
    if any(tensor.is_meta for tensor in tensors) or sum(tensor.nbytes for tensor in tensors) > _MOST_KEPT:
        return None
    return tree_map(lambda value: value.detach().cpu().clone() if isinstance(value, Tensor) else value, inputs)


def other_inputs(inputs: Inputs) -> Iterator[Inputs]:
    """Yield the inputs at other lengths or sizes, of one row where that is possible; last, another batch alone.

    A model need not take any of them. Longer inputs repeat what is there.
    """
    tensors = [value for value in tree_leaves(inputs) if isinstance(value, Tensor) and value.ndim]
    flat = all(tensor.ndim == 1 for tensor in tensors)
    rows = {len(tensor) for tensor in tensors}
    batch = len(rows) == 1 and not flat
    for axes, sizes in _lengths(tensors):
        for size in sizes:
            yield _resized(inputs, axes, size, rows=1 if batch else None)
    if batch:
        yield _resized(inputs, lambda tensor: (), _longer, rows=1 if rows != {1} else 2)


def first_taken(inputs: Inputs, run: Callable[[Inputs], T]) -> tuple[Inputs, T] | None:
    """Return the first inputs of another length or size that a model takes, and what it makes of them.

    Args:
        inputs: One call's arguments.
        run: Runs the model. Whatever it raises says that the model does not take the inputs.
    """
    for other in other_inputs(inputs):
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of a length that the model was not trained for
            return other, run(other)
    return None


def describe(inputs: Inputs, others: Inputs | None = None) -> list[str]:
    """Return name and shape of the first tensor; given other inputs, of the first that differs there, in both."""
    given, changed = (_by_name(item) for item in (inputs, inputs if others is None else others))
    for name, value in given.items():
        for pair in zip(tree_leaves(value), tree_leaves(changed[name]), strict=True):
            if isinstance(pair[0], Tensor) and (others is None or pair[0].shape != pair[1].shape):
                return list(dict.fromkeys(f"{name} {tuple(tensor.shape)}" for tensor in pair))
    return []


def _by_name(inputs: Inputs) -> dict[str, Any]:
    items = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return {str(name): value for name, value in items}


def _longer(length: int) -> int:
    return length + (length + 1) // 2


def _some_longer(length: int) -> int:
    return min(_longer(length), length + 16)  # a long text costs what it has more


def _half(length: int) -> int:
    return max(length // 2, 1)


def _lengths(tensors: Sequence[Tensor]) -> Iterator[tuple[_Axes, tuple[_Size, ...]]]:
    """Yield what may be lengths: the axes to change of any tensor, and how to change them."""
    words = [tensor for tensor in tensors if not tensor.is_floating_point()]
    if found := {tensor.shape[1] for tensor in words if tensor.ndim == 2}:
        yield lambda tensor: _positions(tensor, found), (_some_longer, _half)
    elif words and all(tensor.ndim == 1 for tensor in tensors):
        yield lambda tensor: (0,), (_longer, _half)
    elif len(words) < len(tensors):
        main = max((tensor for tensor in tensors if tensor.is_floating_point()), key=lambda tensor: tensor.ndim)
        for chosen in _SPATIAL.get(main.ndim, ()):
            yield _like(main, chosen), (_half, _longer) if len(chosen) > 1 else (_longer, _half)


def _positions(tensor: Tensor, lengths: Collection[int]) -> list[int]:
    """Return the axes of positions: those of ids and masks, and the first after the batch of embeddings."""
    axes = [axis for axis in range(1, tensor.ndim) if tensor.shape[axis] in lengths]
    if tensor.is_floating_point() and tensor.ndim == 3:
        return [axis for axis in axes if axis == 1]
    return axes if not tensor.is_floating_point() or tensor.ndim == 2 or tensor.shape[1] == 1 else []


def _like(main: Tensor, chosen: Sequence[int]) -> _Axes:
    """Return how to find the axes of a tensor that belong to the chosen ones of the main input."""
    sizes = {main.shape[axis] for axis in chosen}

    def axes(tensor: Tensor) -> Sequence[int]:
        if tensor.ndim == main.ndim:
            return chosen
        return [axis for axis in range(1, tensor.ndim) if tensor.shape[axis] in sizes]

    return axes


def _resized(inputs: Inputs, axes: _Axes, size: _Size, *, rows: int | None) -> Inputs:
    def resize(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.numel():
            return value
        wanted = {axis: size(value.shape[axis]) for axis in axes(value)}
        if rows is not None and value.ndim:
            wanted[0] = rows
        for axis, length in wanted.items():
            value = value.index_select(axis, torch.arange(length, device=value.device) % value.shape[axis])
        return value

    return tree_map(resize, inputs)
