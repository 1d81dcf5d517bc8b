"""Holds: which parameters are held at a mask now, how to free them without the handle, and what a copy is told."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakSet

from torch import Tensor, nn

from ..networks.names import named_weights

_MARK = "hf_lottery_hold"  # in the dictionary of every module that owns a held parameter


class Hold(Protocol):
    """What holds parameters: its owner is the module, so that it lives as long as the module does."""

    @property
    def held(self) -> Iterable[Tensor]:
        """The held parameters."""
        ...

    def remove(self) -> None:
        """Free them."""
        ...


_ACTIVE: WeakSet[Any] = WeakSet()


def release(model: nn.Module) -> None:
    """Free every parameter of a model that :func:`keep_sparse` still holds, for example when its handle was lost.

    A hold is freed as a whole, also where it covers more than this model. Nothing happens if nothing is held.

    Args:
        model: The model, or a part of it.
    """
    for hold in _holds_of(model.parameters()):
        hold.remove()


def check_free(model: nn.Module, names: Iterable[str]) -> None:
    """Check that no parameter is held yet.

    Args:
        model: The model.
        names: The names of the parameters to be held.

    Raises:
        RuntimeError: One of them is held. The message names it, and says how to free it.
    """
    weights = named_weights(model)
    for name in names:
        if _holds_of([weights[name]]):
            raise RuntimeError(
                f"a parameter can be held at one mask only; received {name!r}, which an earlier keep_sparse still "
                "holds. Free it first: handle.remove(), or hf_lottery.training.release(model) if the handle is lost."
            )


def add_hold(model: nn.Module, hold: Hold) -> None:
    """Note that ``hold`` holds parameters of ``model``, and mark the modules that own them."""
    _ACTIVE.add(hold)
    mark, ours = _Mark(hold), {id(parameter) for parameter in hold.held}
    for module in model.modules():
        if any(id(parameter) in ours for parameter in module.parameters(recurse=False)):
            module.__dict__[_MARK] = (*_marks(module), mark)  # weight and bias may be held apart


def drop_hold(model: nn.Module, hold: Hold) -> None:
    """Undo :func:`add_hold`."""
    _ACTIVE.discard(hold)
    for module in model.modules():
        left = tuple(mark for mark in _marks(module) if mark.hold is not hold)
        module.__dict__.pop(_MARK, None)
        if left:
            module.__dict__[_MARK] = left


def _marks(module: nn.Module) -> list[_Mark]:
    return [mark for mark in module.__dict__.get(_MARK, ()) if mark is not None]  # None: the module is a copy


def _holds_of(parameters: Iterable[Tensor]) -> list[Hold]:
    ids = {id(parameter) for parameter in parameters}
    return [hold for hold in _ACTIVE if any(id(parameter) in ids for parameter in hold.held)]


class _Mark:
    """What a held module carries. It keeps the hold alive, and warns when the module is copied or pickled."""

    def __init__(self, hold: Hold):
        self.hold = hold

    def __reduce__(self):  # copy.deepcopy, pickle and torch.save call it once for each copy of a model
        warnings.warn(
            "a copy of a model that is held at a mask is not held: its pruned weights are zero, but training revives "
            "them. Call keep_sparse on the copy too.",
            stacklevel=2,
        )
        return type(None), ()
