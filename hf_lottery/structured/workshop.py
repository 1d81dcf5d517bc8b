"""The workshop: a randomised float64 copy of a model, on which groups are cut for a trial and put back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..symmetry.changes import Baseline
from ..symmetry.inputs import Inputs, describe, first_taken
from ..symmetry.kept import unchanged
from ..symmetry.prover import Prover
from ..symmetry.randomised import Randomised
from .attributes import Attributes, Change
from .copies import Places, named_modules
from .outgoing import outgoing_axes, zeroed
from .slicing import Slices

PROVEN = 1e-10  # of the scale of an output, in float64


class Workshop:
    """A model with noise on every weight, in float64, and its outputs when what the cut units send is zero.

    Args:
        model: The model; not changed.
        slices: The units that may be cut.
        inputs: One call's arguments.
        outputs: Output fields that count, as for ``discover``.

    Attributes:
        model: The copy.
        modules: Its modules by name.
        first: The first name of each tensor for every name of it.
        places: Where its tensors are held.
        inputs: Name and shape of the inputs that it runs on: the given ones, and others of another length or size if
            the model takes any.
    """

    def __init__(self, model: nn.Module, slices: Slices, inputs: Inputs, *, outputs: Sequence[str] | None = None):
        self._stage = Randomised(model)
        self.model = self._stage.model
        self.modules, self.places = named_modules(self.model), Places(self.model)
        self.first = self._stage.first_names()
        self.sends = outgoing_axes(slices.spec, self.first)
        self._attributes = Attributes(self.model)
        self._undo: list[Callable[[], None]] = []
        self._prover = Prover(self._stage, inputs, outputs=outputs)
        self._given = self._prover.inputs
        self._scales = self._prover.before
        self._full = {name: self.places.get(name) for name in self.places.owners}
        self._runs: list[tuple[Inputs, Baseline]] = []
        self.send_nothing(slices)
        self.inputs = describe(self._given, self._runs[-1][0]) if len(self._runs) > 1 else describe(self._given)

    def send_nothing(self, slices: Slices) -> None:
        """Put the whole model back, but with zeros where the cut units send; its outputs are what is compared with."""
        self._put_back(0)
        for name, tensor in self._full.items():
            self.places.put(name, tensor)
        self._stage.restore()
        self._stage.change({
            name: partial(zeroed, name, slices=slices, sends=self.sends)
            for name in {tensor for group in slices.units for tensor, _ in self.sends[group]}
        })  # fmt: skip
        self._full = {name: self.places.get(name) for name in self.places.owners}
        before = Baseline(self._outputs(self._given))
        if slices.units:
            before.measure(self._scales.values)
        self._runs = [(self._given, before)]
        if other := first_taken(self._given, lambda inputs: Baseline(self._outputs(inputs))):
            _, baseline = other
            baseline.scales = {name: scale for name, scale in before.scales.items() if name in baseline.values}
            self._runs.append(other)

    def _outputs(self, inputs: Inputs) -> dict[str, Tensor]:
        self._prover.inputs = inputs
        # A pass over other sizes may change attributes for good, such as the size of a window.
        with warnings.catch_warnings(), unchanged(self.model):
            warnings.simplefilter("ignore")  # such as of a length that the model was not trained for
            return self._prover.rerun()

    def slice(self, names: Iterable[str], slices: Slices) -> Callable[[], None]:
        """Cut tensors, and return a function that puts back what was there.

        Args:
            names: First names of tensors.
            slices: What is kept.

        Raises:
            UnitError: A tensor cannot be cut like this; nothing was changed.
        """
        new = {name: slices.cut(name, self._full[name].detach()) for name in names}
        old = {name: self.places.get(name) for name in new}

        def undo() -> None:
            for name, tensor in old.items():
                self.places.put(name, tensor)

        for name, tensor in new.items():
            self.places.put(name, tensor)
        return undo

    def set(self, changes: Iterable[Change]) -> Callable[[], None]:
        """Set attributes, and return a function that puts them back."""
        count = len(self._undo)
        self._undo += self._attributes.set(changes)
        return lambda: self._put_back(count)

    def _put_back(self, count: int) -> None:
        while len(self._undo) > count:
            self._undo.pop()()

    def error(self, *, others: bool) -> float:
        """Return the change of the outputs.

        Args:
            others: Whether to run on inputs of another length or size too.

        Raises:
            Exception: Whatever the model raises.
        """
        errors = [before.change(self._outputs(inputs)) for inputs, before in self._runs[: 2 if others else 1]]
        return max(errors)

    def runs(self) -> bool:
        """Return whether the model runs on all inputs and gives finite outputs of the same shapes.

        Raises:
            Exception: Whatever the model raises.
        """
        return all(_alike(before.values, self._outputs(inputs)) for inputs, before in self._runs)


def _alike(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(
        value.shape == before[name].shape and not bool(torch.as_tensor(value).isnan().any())
        for name, value in after.items()
    )
