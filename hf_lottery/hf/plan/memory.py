"""What a process holds while it trains a level, and how long a step takes; both measured on one batch."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...networks.names import named_state
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer

_TIMED = 3  # passes; one alone may meet another program's work


@dataclass(frozen=True)
class StepCost:
    """One forward and backward pass.

    Attributes:
        activations: Bytes that the forward pass keeps for the backward pass, parameters left out.
        seconds: Of both passes, without the optimizer.
    """

    activations: int
    seconds: float


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a process while it trains a level, without what operations need for a moment.

    Attributes:
        weights: Parameters and buffers.
        gradients: Of the parameters that are trained.
        optimizer: State of the optimizer.
        masks: The held mask, one number a weight.
        norms: Initial and trained norm parameters of a WinningSignTrainer.
        activations: Of one batch; None if they were not measured.
        host: In the memory of the processor besides: the weights that the level started from, and its mask.
        shards: Processes that all but activations and ``host`` are divided among.
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
        """What sharding divides."""
        return self.weights + self.gradients + self.optimizer + self.masks + self.norms

    @property
    def per_process(self) -> int:
        """All but ``host``, as far as it is known."""
        return -(-self.whole // self.shards) + (self.activations or 0)


def plan_memory(trainer: LotteryTrainer, optimizer: int, activations: int | None, shards: int) -> MemoryPlan:
    """Count what a process of ``trainer`` holds, given the bytes of its optimizer and activations."""
    state = sum(map(_bytes, named_state(trainer.network).values()))
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
    """Run forward and backward four times, and leave the network, its gradients and all generators as they were.

    The first run counts what is kept for the backward pass and warms up; the fastest of the others tells the time.
    """
    with untouched(trainer.network):
        trainer.network.train()
        own = {tensor.untyped_storage().data_ptr() for tensor in named_state(trainer.network).values()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()  # alive until the backward pass, so no place is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = _loss(trainer, batch)
        loss.backward()
        return StepCost(sum(kept.values()), min(_seconds(trainer, batch) for _ in range(_TIMED)))


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put modes, buffers, gradients and the random generators back at the end of a block, which finds no gradients."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    states = random.getstate(), np.random.get_state()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _loss(trainer: LotteryTrainer, batch: Mapping[str, Any]) -> Tensor:
    with trainer.compute_loss_context_manager():
        # Some models take what they compute with out of their inputs.
        return trainer.loss(trainer.network, dict(batch)).mean()


def _seconds(trainer: LotteryTrainer, batch: Mapping[str, Any]) -> float:
    begin = time.perf_counter()
    loss = _loss(trainer, batch)
    loss.backward()
    _wait(loss)
    return time.perf_counter() - begin


def _wait(tensor: Tensor) -> None:
    """An accelerator works on after its operations were asked for."""
    if not tensor.is_cpu:
        torch.accelerator.synchronize()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize
