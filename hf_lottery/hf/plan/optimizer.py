"""The state that a Trainer's optimizer will keep, found by one step on the meta device."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import Trainer


@dataclass(frozen=True)
class OptimizerPlan:
    """The state of an optimizer after a step.

    Attributes:
        state: The optimizer's ``state_dict()``, with its tensors on the meta device.
        guessed: Whether two moments for each weight are assumed, because a step of the optimizer failed.
    """

    state: dict[str, Any]
    guessed: bool

    @property
    def bytes(self) -> int:
        """Bytes of the state."""
        tensors = [leaf for leaf in tree_leaves(self.state) if isinstance(leaf, Tensor)]
        return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def plan_optimizer(trainer: Trainer) -> OptimizerPlan:
    """Find out what the optimizer of ``trainer`` keeps: two moments for Adam, almost nothing for Adafactor.

    The trainer keeps the optimizer that it had, or none.
    """
    before = trainer.optimizer
    try:
        trainer.optimizer = None
        optimizer = trainer.create_optimizer()
    finally:
        trainer.optimizer = before
    try:
        probe = _on_meta(optimizer)
        probe.step()
        return OptimizerPlan(probe.state_dict(), guessed=False)
    except Exception:  # an optimizer with its own kernels, or one that reads numbers, fails on the meta device
        probe = _on_meta(optimizer)
        for group in probe.param_groups:
            for parameter in group["params"]:
                probe.state[parameter] = {"first": torch.empty_like(parameter), "second": torch.empty_like(parameter)}
        return OptimizerPlan(probe.state_dict(), guessed=True)


def _on_meta(optimizer: torch.optim.Optimizer) -> Any:
    """Copy the optimizer, with parameters and gradients on the meta device."""
    probe: Any = copy.copy(optimizer)
    probe.state, probe.param_groups = defaultdict(dict), []
    for group in optimizer.param_groups:
        parameters = [torch.empty_like(p, device="meta").requires_grad_() for p in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        # Fast kernels need a real device. The state is the same for every kernel.
        slow = {name: False for name in ("fused", "foreach") if name in group}
        probe.param_groups.append({**group, **slow, "params": parameters})
    return probe
