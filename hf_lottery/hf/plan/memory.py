"""Memory of a process while it trains a level, and time of a step; both are measured on one batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...networks.generators import kept_generators
from ...networks.modes import restored_modes
from ...networks.names import named_state
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer

_TIMED = 3  # passes; the work of other programs may slow some


@dataclass(frozen=True)
class StepCost:
    """The cost of one forward and backward pass.

    Attributes:
        activations: Bytes that the forward pass keeps for the backward pass, without parameters and buffers.
        seconds: Seconds of both passes, without the optimizer.
    """

    activations: int
    seconds: float


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a process holds while it trains a level, without the temporary memory of operations.

    Attributes:
        weights: Parameters and buffers.
        gradients: Gradients of the trained parameters.
        optimizer: State of the optimizer.
        masks: The mask that is held, one number for each weight.
        norms: Initial and trained norm parameters of a WinningSignTrainer.
        activations: Activations of one batch; None if they were not measured.
        host: Additional main memory (RAM): the weights that the level started from, and its mask.
        shards: Number of processes that share everything except ``activations`` and ``host``.
    """

    weights: int
    gradients: int
    optimizer: int
    masks: int
    norms: int
    activations: int | None
    host: int
    shards: int = 1

    @property
    def whole(self) -> int:
        """Bytes that sharding divides among the processes."""
        return self.weights + self.gradients + self.optimizer + self.masks + self.norms

    @property
    def per_process(self) -> int:
        """Bytes of one process without ``host``. Activations that were not measured count as 0."""
        return -(-self.whole // self.shards) + (self.activations or 0)


def plan_memory(trainer: LotteryTrainer, optimizer: int, activations: int | None, shards: int) -> MemoryPlan:
    """Count the memory of one process of ``trainer``, given the bytes of its optimizer and activations."""
    state = sum(map(_bytes, named_state(trainer.network, numbers=False).values()))
    trained = [parameter for parameter in trainer.network.parameters() if parameter.requires_grad]
    norms = trainer.norms.values() if isinstance(trainer, WinningSignTrainer) else ()
    return MemoryPlan(
        weights=state,
        gradients=sum(map(_bytes, trained)),
        optimizer=optimizer,
        masks=sum(map(_bytes, trainer.weights.values())),
        norms=2 * sum(map(_bytes, norms)),
        activations=activations,
        host=state + trainer.weights.weights,
        shards=shards,
    )


def measure_step(trainer: LotteryTrainer, batch: Mapping[str, Any]) -> StepCost:
    """Measure forward and backward passes, and restore the network, its gradients and all random generators.

    The first pass counts what is kept for the backward pass, and warms up. The fastest of three more gives the time.
    """
    with untouched(trainer.network):
        trainer.network.train()
        own = {tensor.untyped_storage().data_ptr() for tensor in named_state(trainer.network, numbers=False).values()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()  # none is freed before the backward pass
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = _loss(trainer, batch)
        loss.backward()
        return StepCost(sum(kept.values()), min(_seconds(trainer, batch) for _ in range(_TIMED)))


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run a block without gradients so far; at the end restore modes, buffers, gradients and random generators."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with restored_modes(model), kept_generators():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _loss(trainer: LotteryTrainer, batch: Mapping[str, Any]) -> Tensor:
    with trainer.compute_loss_context_manager():
        # The batch is copied, since some models remove entries from their inputs.
        return trainer.loss(trainer.network, dict(batch)).mean()


def _seconds(trainer: LotteryTrainer, batch: Mapping[str, Any]) -> float:
    begin = time.perf_counter()
    loss = _loss(trainer, batch)
    loss.backward()
    _wait(loss)
    return time.perf_counter() - begin


def _wait(tensor: Tensor) -> None:
    """Wait for an accelerator, which runs its operations after the calls have returned."""
    if not tensor.is_cpu:
        torch.accelerator.synchronize()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize
