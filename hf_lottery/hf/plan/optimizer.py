"""The state that a Trainer's optimizer will keep, found by one step on the meta device, where nothing has numbers."""

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
        state: Its ``state_dict()``, tensors of the parameters' sizes on the meta device.
        guessed: Whether the optimizer could not be tried out, and two moments a weight are assumed.
    """

    state: dict[str, Any]
    guessed: bool

    @property
    def bytes(self) -> int:
        """Memory of the state."""
        tensors = [leaf for leaf in tree_leaves(self.state) if isinstance(leaf, Tensor)]
        return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def plan_optimizer(trainer: Trainer) -> OptimizerPlan:
    """Find out what the optimizer of ``trainer`` keeps: two moments for Adam, next to nothing for Adafactor.

    The trainer is left without an optimizer, if it had none.
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
    except Exception:  # one with kernels of its own, or one that looks at its numbers
        probe = _on_meta(optimizer)
        for group in probe.param_groups:
            for parameter in group["params"]:
                probe.state[parameter] = {"first": torch.empty_like(parameter), "second": torch.empty_like(parameter)}
        return OptimizerPlan(probe.state_dict(), guessed=True)


def _on_meta(optimizer: torch.optim.Optimizer) -> Any:
    """The optimizer over parameters with gradients, shapes and dtypes, but without numbers."""
    probe: Any = copy.copy(optimizer)
    probe.state, probe.param_groups = defaultdict(dict), []
    for group in optimizer.param_groups:
        parameters = [torch.empty_like(p, device="meta").requires_grad_() for p in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        # The fast kernels are of real devices; which one runs does not change the state.
        slow = {name: False for name in ("fused", "foreach") if name in group}
        probe.param_groups.append({**group, **slow, "params": parameters})
    return probe
