"""Unreached parameters: vectors that evaluation does not use, found by passes that do, and tied to their stream.

A masked token or frame has its vector from a parameter that only training reads, or only a call with one more argument.
Such a parameter lies on the axes of the stream it is put into, so it has to move with them.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..networks.names import plain_name
from .kept import unchanged
from .layout import factors, unify
from .passes import TRAINING, Pass
from .reads import memory
from .trace import Axes, call, plain_kernels


def other_passes(model: nn.Module, inputs: Any) -> list[Pass]:
    """Return the passes that read what a pass in evaluation mode leaves out, as :func:`reaching_passes` finds them."""
    named = {plain_name(name): parameter for name, parameter in model.named_parameters() if parameter.numel()}
    with unchanged(model):
        with plain_kernels(model):
            reached = set(_reached_by(lambda: call(model, inputs), named))
        return [*reaching_passes(model, inputs, named.keys() - reached)] if reached else []


def reaching_passes(model: nn.Module, inputs: Any, lost: Collection[str]) -> dict[Pass, list[str]]:
    """Find passes that read parameters which a pass in evaluation mode does not.

    Tried are training mode, and for the module that owns such a parameter each argument that it was not given, as a
    mask over the first axes of what its parts compute.

    Args:
        model: The model.
        inputs: One call's arguments.
        lost: Names of the parameters.

    Returns:
        Pass -> names of the parameters that it reads and no pass before it did.
    """
    named = {plain_name(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    left, found = {name: named[name] for name in lost}, {}
    for way in itertools.chain([TRAINING], _with_masks(model, inputs, left)) if left else ():
        with plain_kernels(model), way.on(model):
            reached = _reached_by(lambda: call(model, inputs), left)
        if reached:
            found[way] = reached
            left = {name: parameter for name, parameter in left.items() if name not in reached}
        if not left:
            break
    return found


def tie_unreached(
    axes: Mapping[str, Axes],
    lost: Collection[str],
    ways: Collection[Pass],
    traced: Callable[[Pass], Mapping[str, Axes]],
) -> list[str]:
    """Tie the axes of unreached parameters to the axes that other passes show them on.

    Args:
        axes: The axes of the parameters and buffers, traced in evaluation mode. Those of lost parameters are tied.
        lost: Names of the parameters that were not reached.
        ways: The passes that reach them.
        traced: Returns the axes of the parameters and buffers, traced by a pass.

    Returns:
        The names of those that stay untied.
    """
    left = [*lost]
    for way in ways:
        if not left:
            break
        others = traced(way)
        where = {tuple(factors(axis)): (name, k) for name in others for k, axis in enumerate(others[name])
                 if name not in lost and factors(axis)}  # fmt: skip
        for name in [*left]:
            places = [where.get(tuple(factors(axis))) for axis in others[name] if factors(axis)]
            if None not in places:
                for axis, place in zip([axis for axis in axes[name] if factors(axis)], places, strict=True):
                    assert place is not None
                    unify(axis, axes[place[0]][place[1]])
                left.remove(name)
    return left


class _Reads(TorchDispatchMode):
    """Notes the memory of everything that an operation reads."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.memory.add(memory(value))
        return func(*args, **(kwargs or {}))


def _reached_by(run: Callable[[], Any], parameters: Mapping[str, Tensor]) -> list[str]:
    """Return the parameters that a run reads; none if it fails."""
    reads = _Reads()
    try:
        with reads:
            run()
    except Exception:  # a model need not take what it is given here
        return []
    return [name for name, parameter in parameters.items() if memory(parameter) in reads.memory]


def _with_masks(model: nn.Module, inputs: Any, lost: Mapping[str, Tensor]) -> Iterator[Pass]:
    """Yield passes that give one more argument to a module, by which it reads a lost parameter of its own."""
    modules = {plain_name(name): (name, module) for name, module in model.named_modules()}
    owners = dict.fromkeys(name.rpartition(".")[0] for name in lost)
    for name, module in (modules[owner] for owner in owners if owner in modules):
        own = {
            key: parameter
            for key, parameter in lost.items()
            if any(parameter is p for p in module._parameters.values())
        }
        calls, shapes = _observed(model, inputs, module)
        for args, kwargs in calls:
            for argument, value in itertools.product(_open_arguments(module, args, kwargs), _masks(shapes)):
                way = Pass(module=name, argument=argument, value=value)
                with plain_kernels(model), way.on(model):
                    reached = _reached_by(lambda: module(*args, **kwargs), own)  # noqa: B023  # called at once
                if reached:
                    yield way
                    break


def _observed(model: nn.Module, inputs: Any, module: nn.Module) -> tuple[list[Any], list[tuple[int, int]]]:
    """Return the first call of a module in a pass, and the numbers of rows and places of what its parts compute."""
    calls: list[Any] = []
    shapes: dict[tuple[int, int], None] = {}

    def note_call(_: nn.Module, args: Any, kwargs: Any) -> None:
        if not calls:
            calls.append((args, kwargs))

    def note_shape(_: nn.Module, args: Any, result: Any) -> None:
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.ndim > 2:
                # Sequences of vectors, and maps with their channels in front of their places.
                shapes.update({(value.shape[0], value.shape[1]): None, (value.shape[0], value[0, 0].numel()): None})

    hooks = [module.register_forward_pre_hook(note_call, with_kwargs=True)]
    hooks += [part.register_forward_hook(note_shape) for part in module.modules()]
    try:
        with plain_kernels(model):
            call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, [*shapes]


def _open_arguments(module: nn.Module, args: Any, kwargs: Any) -> list[str]:
    """Return the arguments that a call leaves at None."""
    signature = inspect.signature(module.forward)
    bound = signature.bind(*args, **kwargs).arguments
    return [name for name, parameter in signature.parameters.items() if bound.get(name, parameter.default) is None]


def _masks(shapes: Collection[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield masks that choose every other place, as booleans and as numbers."""
    for dtype, (rows, length), square in itertools.product(
        (torch.bool, torch.long, torch.float), shapes, (False, True)
    ):
        shape = (rows, length, length) if square else (rows, length)
        yield (torch.arange(rows * length * (length if square else 1)) % 2 == 0).view(shape).to(dtype)
