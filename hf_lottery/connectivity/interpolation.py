"""Interpolation: move a network along lines and planes of weight space in place, with one copy of it held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..masks.mask import MaskMismatchError
from ..networks.names import named_state


@dataclass(frozen=True)
class Held:
    """The tensors of a network that is moved in place; its first values are kept.

    Attributes:
        moving: Of each parameter or buffer that differs between the networks, the tensor to write, its first values,
            and those of the other networks.
        still: Of each other one, the tensor and its first values.
    """

    moving: list[tuple[Tensor, ...]]
    still: list[tuple[Tensor, Tensor]]

    @torch.no_grad()
    def to_line(self, alpha: float) -> None:
        """Move to ``(1 - alpha) * first + alpha * other``, without allocating; exact at 0 and 1."""
        for target, first, other in self.moving:
            torch.lerp(first, other, alpha, out=target)
        self._hold()

    @torch.no_grad()
    def to_plane(self, beta: float, gamma: float) -> None:
        """Move to ``(1 - beta - gamma) * first + beta * second + gamma * third``, without allocating."""
        for target, first, second, third in self.moving:
            torch.mul(first, 1 - beta - gamma, out=target)
            target.add_(second, alpha=beta).add_(third, alpha=gamma)
        self._hold()

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the network its first values, bit for bit."""
        for target, first, *_ in self.moving:
            target.copy_(first)
        self._hold()

    def _hold(self) -> None:
        for target, first in self.still:  # a repair may have written to it; a lerp of infinities would be no number
            target.copy_(first)


@contextmanager
def holding(model: nn.Module, *others: nn.Module) -> Iterator[Held]:
    """Hold a network so that it can be moved towards others; at the end it is as before, whatever happened.

    Every parameter and buffer takes part, one of several names once. Integer buffers stay.

    Args:
        model: The network to move.
        others: Networks of the same names and shapes; not changed. They may share tensors with ``model``.

    Raises:
        MaskMismatchError: The networks differ in names, shapes or ties.
    """
    state, *ends = (named_state(network, adapters=True) for network in (model, *others))
    for end in ends:
        check_alike(state, end)
    held = Held([], [])
    for name in _distinct(state, ends):
        tensor = state[name].detach()
        first = tensor.clone()
        values = [end[name].detach().to(tensor) for end in ends]
        numbers = tensor.is_floating_point() or tensor.is_complex()
        if numbers and not all(torch.equal(first, value) for value in values):
            held.moving.append((tensor, first, *values))
        else:
            held.still.append((tensor, first))  # a shared tensor is here, as it equals itself
    try:
        yield held
    finally:
        held.put_back()


def check_alike(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if only := state.keys() ^ other.keys():
        raise MaskMismatchError(f"two networks must have the same parameters; {min(only)!r} is in one only.")
    for name, tensor in state.items():
        if tensor.shape != other[name].shape:
            raise MaskMismatchError(
                f"{name!r} must have one shape in both networks; received {list(tensor.shape)} and "
                f"{list(other[name].shape)}."
            )


def _distinct(state: Mapping[str, Tensor], others: list[dict[str, Tensor]]) -> Iterator[str]:
    """One name for each tensor in memory."""
    seen: dict[tuple, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        first = seen.setdefault(key, name)
        if first == name:
            yield name
        elif not all(torch.equal(other[first], other[name]) for other in others):
            raise MaskMismatchError(
                f"{name!r} must be tied to {first!r} in both networks; received other values of it in one. "
                "Tie them, or untie both."
            )
