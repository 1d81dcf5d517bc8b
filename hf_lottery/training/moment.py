"""Moments: capture a model after a given optimizer step, without control of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .snapshot import Snapshot


@contextmanager
def capture_at(model: nn.Module, step: int) -> Iterator[Callable[[], Snapshot]]:
    """Capture the model after ``step`` optimizer steps inside the block; only its first optimizer is counted.

    Yields:
        A function to call after the block. It returns the snapshot; ValueError if training ended before the step.
    """
    taken, snapshot = 0, Snapshot.capture(model) if step == 0 else None
    ours, first = {id(parameter) for parameter in model.parameters()}, None

    def after_step(optimizer, args, kwargs) -> None:
        nonlocal taken, snapshot, first
        if first is None and any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
            first = optimizer
        if optimizer is first:
            taken += 1
            if taken == step:
                snapshot = Snapshot.capture(model, step=step)

    def result() -> Snapshot:
        if snapshot is None:
            raise ValueError(f"the rewind step must lie within training; received {step} of {taken}. Rewind earlier.")
        return snapshot

    handle = register_optimizer_step_post_hook(after_step)
    try:
        yield result
    finally:
        handle.remove()
