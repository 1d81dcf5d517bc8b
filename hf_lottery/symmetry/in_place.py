"""A model whose own weights are permuted for a trial, and put back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..networks.numbers import check_numbers
from .inputs import Inputs
from .kept import unchanged
from .permutation import Permutation, movable_tensors
from .structure import Structure

_Undo = Callable[[Tensor], Tensor]


class InPlace:
    """A model in its own precision, on its device, whose weights are moved in place and moved back.

    Moving numbers does not change them, so that the inverse permutation restores every bit and no copy is needed. A
    journal says what has moved: an error or Ctrl-C at any moment leaves nothing that :meth:`restore` does not put back.

    Args:
        model: The model.
        spec: Whose permutations will be tried.
    """

    where = "in its own precision"

    def __init__(self, model: nn.Module, spec: Structure):
        check_numbers(model)
        self.model = model
        self._tensors = {name: t.detach() for name, t in movable_tensors(model, spec).items() if t.is_floating_point()}
        types = {tensor.dtype for tensor in self._tensors.values()}
        self.rtol = 4 * max(torch.finfo(dtype).eps for dtype in types) ** 0.5
        self._undo: list[tuple[str, _Undo]] = []
        self._pending: tuple[str, Tensor] | None = None  # what is being written, and what belongs there

    def settle(self) -> None:
        """Do nothing: each pass puts back the buffers that it changes."""

    def inputs(self, inputs: Inputs) -> Inputs:
        """Return the inputs as they are."""
        return inputs

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute as the model does, and put back what a pass writes to it."""
        with unchanged(self.model):
            yield

    def permute(self, permutation: Permutation) -> None:
        """Permute the model, which has its own values."""
        inverse = permutation.inverse()
        for name, tensor in self._tensors.items():
            if permutation.moves(name):
                self._put(name, permutation.move(name, tensor), partial(inverse.move, name))

    def disturb(self, names: Collection[str] | None) -> None:
        """Shift the numbers of tensors, each by its own amount, which is no symmetry."""
        for k, (name, tensor) in enumerate(self._tensors.items()):
            if names is None or name in names:
                shift = 1 + k % max(tensor.numel() - 1, 1)
                self._put(name, _rolled(tensor, shift), partial(_rolled, shift=-shift))

    def _put(self, name: str, value: Tensor, undo: _Undo) -> None:
        self._pending = name, self._tensors[name].clone()
        with torch.no_grad():
            self._tensors[name].copy_(value)
        self._undo.append((name, undo))
        self._pending = None

    def restore(self) -> None:
        """Put back what was moved, to the end, also if Ctrl-C comes meanwhile."""
        interrupted = None
        while self._pending or self._undo:
            try:
                self._step_back()
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted:
            raise interrupted

    @torch.no_grad()
    def _step_back(self) -> None:
        if self._pending is None:
            name, undo = self._undo[-1]
            self._pending = name, undo(self._tensors[name])
        name, value = self._pending
        self._tensors[name].copy_(value)
        if self._undo and self._undo[-1][0] == name:
            self._undo.pop()
        self._pending = None


def _rolled(tensor: Tensor, shift: int) -> Tensor:
    return tensor.flatten().roll(shift).view_as(tensor)
