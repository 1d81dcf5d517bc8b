"""Buffers: which of them belong to the units of a network, and move with its weights.

A buffer is either data of this network (statistics, scales that training follows) or a constant of its architecture (a
table of positions or angles). Permuting a constant would keep the function as well, but other networks of the same
architecture have it in its own order, so a mask or a match would no longer fit them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.names import plain_name
from .passes import TRAINING
from .trace import call

_STATISTICS = ("running_mean", "running_var")


def moving_buffers(
    model: nn.Module, inputs: Any, named: Mapping[str, Tensor], parameters: Collection[str]
) -> frozenset[str]:
    """Return the names of the buffers whose values belong to units.

    These are the statistics of norms and what lies beside them in a frozen norm, masks of ``torch.nn.utils.prune``,
    buffers that are the same everywhere, and saved buffers that a pass in training mode writes to.

    Args:
        model: The model. It runs in training mode if that can decide about a buffer; its buffers are restored.
        inputs: One call's arguments.
        named: Name -> tensor of the parameters and buffers.
        parameters: Which of them are parameters.
    """
    buffers = {name: tensor for name, tensor in named.items() if name not in parameters and tensor.numel()}
    moving = {name for name, buffer in buffers.items() if _is_data(name, buffer, named)}
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    open_ = {n: t for n, t in buffers.items() if n not in moving and t.is_floating_point() and t.ndim and not t.is_meta}
    open_ = {name: tensor for name, tensor in open_.items() if id(tensor) in saved}
    return frozenset(moving | (_written_in_training(model, inputs, open_) if open_ else set()))


def _is_data(name: str, buffer: Tensor, named: Mapping[str, Tensor]) -> bool:
    owner, _, last = name.rpartition(".")
    if last in _STATISTICS or last.endswith("correction_bias"):
        return True
    beside = named.get(f"{owner}.{_STATISTICS[0]}" if owner else _STATISTICS[0])
    if beside is not None and beside.shape == buffer.shape:
        return True
    if name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in named:
        return True
    # A constant buffer: permuting it now changes nothing, but the values that training gives it belong to the units.
    if buffer.is_meta:
        return False  # whether it is constant is not known
    return buffer.is_floating_point() and bool((buffer == buffer.reshape(-1)[0]).all())


def _written_in_training(model: nn.Module, inputs: Any, buffers: Mapping[str, Tensor]) -> set[str]:
    """Return the buffers that a pass in training mode writes to, also if it then fails."""
    versions = {name: tensor._version for name, tensor in buffers.items()}
    written: set[str] = set()
    with torch.no_grad(), TRAINING.on(model):
        with suppress(Exception):  # a model that cannot run so on these inputs shows nothing
            call(model, inputs)
        now = {plain_name(name): tensor for name, tensor in model.named_buffers(remove_duplicate=False)}
        for name, tensor in buffers.items():
            found = now.get(name)
            if found is not None and (found is not tensor or tensor._version != versions[name]):
                written.add(name)
    return written
