"""Moments: capture a model after a given optimizer step, without control of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim.optimizer import Optimizer

from .snapshot import Snapshot
from .steps import unwatch, watch


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
    moment = _Moment(model, step)
    watch(moment)
    try:
        yield moment.result
    finally:
        unwatch(moment)


class _Moment:
    """Captures the model when a step is over."""

    def __init__(self, model: nn.Module, step: int):
        self._model, self._step = model, step
        self._ours = {id(parameter) for parameter in model.parameters()}
        self._counter, self._running = _StepCounter(), list[Optimizer]()
        self._snapshot = Snapshot.capture(model) if step == 0 else None

    def before_step(self, optimizer: Optimizer) -> None:
        if self._counts(optimizer):
            self._running.append(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        if not self._counts(optimizer):
            return
        while self._running and self._running.pop() is not optimizer:
            pass  # a step that ended in an error
        if self._running:
            return  # a part of another step: of a subclass, or of an optimizer around this one
        self._counter.add(optimizer)
        if self._counter.steps == self._step:  # the last optimizer of the step captures last
            self._snapshot = Snapshot.capture(self._model, step=self._step)

    def result(self) -> Snapshot:
        """Return the snapshot, or raise ValueError if training ended before the step."""
        counter = self._counter
        if self._snapshot is None or (counter.steps == self._step and not counter.whole):
            raise ValueError(
                f"the rewind step must lie within training; received {self._step} of {counter.steps}. Rewind earlier."
            )
        return self._snapshot

    def _counts(self, optimizer: Optimizer) -> bool:
        if self._counter.steps > self._step:
            return False  # the moment has passed
        return any(id(parameter) in self._ours for group in optimizer.param_groups for parameter in group["params"])


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
