"""Modes: run a block with a model in another mode, and restore the mode of every module afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Restore the training mode of every module of ``model`` at the end of a block, which may change them."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block with a model in eval mode and without gradients; at the end every module's mode is restored."""
    with restored_modes(model), torch.no_grad():
        model.eval()
        yield
