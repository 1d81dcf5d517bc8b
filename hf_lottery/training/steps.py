"""Steps: tell watchers before and after every step of every torch optimizer.

torch has global hooks for this, but it calls them from a dictionary that must not change meanwhile: a model that is
collected, or another thread, would end an unrelated step with an error. So two hooks are registered once, and stay.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any, Protocol
from weakref import ref

from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class Watcher(Protocol):
    """What wants to know of steps."""

    def before_step(self, optimizer: Optimizer) -> None:
        """Act before a step."""
        ...

    def after_step(self, optimizer: Optimizer) -> None:
        """Act after a step, and after the optimizer's own hooks."""
        ...


_WATCHERS: list[ref[Any]] = []  # always read as a copy


def watch(watcher: Watcher) -> None:
    """Tell ``watcher`` of every step, as long as it exists."""
    _hook_in()
    _WATCHERS.append(ref(watcher, _forget))


def unwatch(watcher: Watcher) -> None:
    """Undo :func:`watch`."""
    _forget(ref(watcher))


def _forget(watcher: ref[Any]) -> None:
    with suppress(ValueError):  # forgotten already
        _WATCHERS.remove(watcher)


@functools.cache
def _hook_in() -> None:
    register_optimizer_step_pre_hook(_before)
    register_optimizer_step_post_hook(_after)


def _before(optimizer: Optimizer, args, kwargs) -> None:
    for watcher in [*_WATCHERS]:
        if (alive := watcher()) is not None:
            alive.before_step(optimizer)


def _after(optimizer: Optimizer, args, kwargs) -> None:
    for watcher in [*_WATCHERS]:
        if (alive := watcher()) is not None:
            alive.after_step(optimizer)
