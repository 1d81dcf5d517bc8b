"""Moments: capture a model after a given optimizer step, without control of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .snapshot import Snapshot


@contextmanager
def capture_at(model: nn.Module, step: int) -> Iterator[Callable[[], Snapshot]]:
    """Capture the model after ``step`` optimizer steps inside the block.

    Several optimizers of the model count together: a step is over when each of them has made it. They must step in
    turn, in the order of the first step, until the moment has passed. A step that an optimizer makes inside the step of
    another one (SAM, Lookahead) belongs to that step.

    Yields:
        A function to call after the block. It returns the snapshot; ValueError if training ended before the step.

    Raises:
        ValueError: The optimizers do not step in turn, so that the number of a step has no clear meaning.
    """
    counter, running = _StepCounter(), list[Optimizer]()
    snapshot = Snapshot.capture(model) if step == 0 else None
    ours = {id(parameter) for parameter in model.parameters()}

    def counts(optimizer: Optimizer) -> bool:
        return counter.steps <= step and any(id(p) in ours for g in optimizer.param_groups for p in g["params"])

    def before_step(optimizer: Optimizer, args, kwargs) -> None:
        if counts(optimizer):
            running.append(optimizer)

    def after_step(optimizer: Optimizer, args, kwargs) -> None:
        nonlocal snapshot
        if not counts(optimizer):
            return
        while running and running.pop() is not optimizer:
            pass  # a step that ended in an error
        if running:
            return  # a part of another step: of a subclass, or of an optimizer around this one
        counter.add(optimizer)
        if counter.steps == step:  # the last optimizer of the step captures last
            snapshot = Snapshot.capture(model, step=step)

    def result() -> Snapshot:
        if snapshot is None or (counter.steps == step and not counter.whole):
            raise ValueError(
                f"the rewind step must lie within training; received {step} of {counter.steps}. Rewind earlier."
            )
        return snapshot

    handles = [register_optimizer_step_pre_hook(before_step), register_optimizer_step_post_hook(after_step)]
    try:
        yield result
    finally:
        for handle in handles:
            handle.remove()


class _StepCounter:
    """Counts the steps of optimizers that step in turn.

    Attributes:
        steps: Steps that have begun: the first optimizer has made them.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._cycle: list[Optimizer] = []
        self._calls = 0

    @property
    def whole(self) -> bool:
        """Whether every optimizer has made the latest step."""
        return self._calls == self.steps * len(self._cycle)

    def add(self, optimizer: Optimizer) -> None:
        """Count one call of ``optimizer.step``."""
        if self._calls == len(self._cycle) and optimizer not in self._cycle:  # still in the first step
            self._cycle.append(optimizer)
        elif optimizer is not self._cycle[self._calls % len(self._cycle)]:
            raise ValueError(
                f"the optimizers of a model must step in turn up to the step to rewind to; received "
                f"{type(optimizer).__name__} out of turn after step {self.steps}. Step all of them from the first step "
                "on, use one optimizer with several parameter groups, or rewind to an earlier step."
            )
        self._calls += 1
        self.steps = -(-self._calls // len(self._cycle))
