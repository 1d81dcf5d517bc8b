"""Modes: run a block with a model in another mode, and put every module's own mode back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Let a block change the training mode of any module of ``model``; at the end every module has its own again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode without gradients; at the end every module has its own mode again."""
    with restored_modes(model), torch.no_grad():
        model.eval()
        yield
