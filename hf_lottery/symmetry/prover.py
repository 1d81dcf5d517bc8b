"""The prover: runs a model before and after its weights were changed, and says how much the outputs changed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .changes import Baseline
from .errors import SymmetryError
from .in_place import InPlace
from .inputs import Inputs, describe, other_inputs
from .kept import kept_buffers
from .outputs import chosen_outputs
from .passes import EVALUATION, Pass
from .permutation import Permutation, random_permutation
from .randomised import Randomised
from .structure import Structure
from .trace import call, plain_kernels

Outputs = dict[str, Tensor]
_FEW = 10_000  # ways to move a group; two random permutations of more ways are not the same


class Prover:
    """A model that can be changed and put back, and its outputs on some inputs.

    Attributes:
        before: The outputs of the unchanged model on the current inputs.
        runs: How many times the model has run.

    Args:
        stage: The model.
        inputs: One call's arguments.
        outputs: Output fields that must not change, as for ``discover``.
        moved: Names of the tensors that the free groups of the spec move; None for all parameters.
        way: How to run the model.
    """

    def __init__(
        self,
        stage: Randomised | InPlace,
        inputs: Inputs,
        *,
        outputs: Sequence[str] | None = None,
        moved: Collection[str] | None = None,
        way: Pass = EVALUATION,
    ):
        self.stage, self.outputs, self.way, self.runs = stage, outputs, way, 0
        self._moved, self._now = moved, None
        self.inputs = stage.inputs(inputs)
        # A model may extend its tables while it runs, so its state is what the first pass leaves.
        self.before = self._baseline()
        stage.settle()

    def _baseline(self) -> Baseline:
        try:
            return Baseline(self.run())
        except SymmetryError:
            raise
        except Exception as error:
            raise SymmetryError(
                f"the model must run {self.stage.where}; received an error from its forward pass: "
                f"{type(error).__name__}: {error}"
            ) from error

    def run(self) -> Outputs:
        """Return the outputs of the model as it is now. What the pass writes to buffers stays."""
        self.runs += 1
        with plain_kernels(self.stage.model), self.way.on(self.stage.model), self.stage.computing():
            return chosen_outputs(call(self.stage.model, self.inputs), self.outputs)

    def rerun(self) -> Outputs:
        """Return copies of the outputs of the model as it is now, and put its buffers back."""
        with kept_buffers(self.stage.model):
            return {name: tensor.clone() for name, tensor in self.run().items()}

    @contextmanager
    def outputs_with_gradients(self) -> Iterator[Outputs]:
        """Yield the outputs of the model as it is now, with their gradients, and put its buffers back."""
        self.runs += 1
        model = self.stage.model
        with kept_buffers(model), plain_kernels(model), self.stage.computing(), torch.enable_grad():
            yield chosen_outputs(call(model, self.inputs), self.outputs)

    @contextmanager
    def changed(self, change: Callable[[], None]) -> Iterator[None]:
        """Run a block with the model changed, and restore it afterwards."""
        self._be(None)
        try:
            change()
            yield
        finally:
            self.stage.restore()

    def _be(self, permutation: Permutation | None) -> None:
        """Let the model be permuted, or as it was; a second trial of one permutation moves nothing again."""
        if permutation is not None and permutation == self._now:
            return
        self._now = None
        self.stage.restore()
        if permutation is not None:
            self.stage.permute(permutation)
            self._now = permutation

    def restore(self) -> None:
        """Put the model back as it was."""
        self._be(None)

    def error_of(self, permutation: Permutation) -> float:
        """Return the change of the outputs (see :class:`Baseline`) by a permutation."""
        self._be(permutation)
        return self._compared(self.rerun())

    def try_out(self, change: Callable[[], None]) -> float:
        """Return the change of the outputs by a change of the weights, which are put back."""
        with self.changed(change):
            after = self.rerun()
        return self._compared(after)

    def _compared(self, after: Outputs) -> float:
        if not self.before.scales:
            bound = self.before.change_at_most(after)
            if bound <= self.stage.rtol:
                return bound
            self.check_repeats()
            self.measure()
        return self.before.change(after)

    def check_repeats(self) -> None:
        """Check that the model gives the same outputs twice.

        Raises:
            SymmetryError: It does not.
        """
        self.restore()
        again = self.rerun()
        if self.before.change(again) != 0 and not self.before.change_at_most(again) <= self.stage.rtol:
            raise SymmetryError(
                f"the model must give the same output twice {self.way}; received another one. "
                "Make it deterministic: fix what it samples, or pass that as an input."
            )

    def measure(self) -> None:
        """Find the scales of the outputs from a pass with weights that are no permutation of these.

        Raises:
            SymmetryError: No output, or none but integers, depends on the weights that move.
        """
        if self.before.scales or not (self._moved is None or self._moved):
            return
        with self.changed(lambda: self.stage.disturb(self._moved)):
            self.before.measure(self.rerun())

    def take_others(self, permutation: Permutation) -> tuple[list[str], float]:
        """Go on with inputs of another length or size if the model takes any.

        Args:
            permutation: What to try on them.

        Returns:
            What inputs were taken, described, and the change of the outputs on them.
        """
        given, first, shapes = self.inputs, self.before, self._shapes()
        for self.inputs in other_inputs(given):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # such as of a length that the model was not trained for
                    self._be(permutation)
                    after = self.rerun()
                    self.restore()
                    self.before = Baseline(self.rerun())
                if self._shapes() != shapes:
                    break  # it has extended a table for good, which the spec does not know
                self.before.scales = {n: scale for n, scale in first.scales.items() if n in self.before.values}
                return describe(given, self.inputs), self._compared(after)
            except Exception:  # the model does not take these, or they prove nothing
                continue
        self.inputs, self.before = given, first
        return describe(given), 0.0

    def _shapes(self) -> dict[str, torch.Size]:
        model = self.stage.model
        return {name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def witnesses(spec: Structure, seed: int = 0) -> list[Permutation]:
    """Return permutations of which no two groups move in all together: the first moves all groups at once.

    Two groups that belong together may hide it if each can move in few ways only, such as two heads that change
    places. So for such groups there is, for any two, a permutation that moves one of them alone.
    """
    few = [name for name in spec.free if few_ways(spec, name)]
    chosen = [list(spec.free)]
    chosen += [[name for k, name in enumerate(few) if k >> bit & 1] for bit in range((len(few) - 1).bit_length())]
    return [random_permutation(spec, seed, groups) for groups in chosen if groups]


def few_ways(spec: Structure, group: str) -> bool:
    """Tell whether two random permutations of a group might be the same."""
    *outer, size = spec.entry_shape(group)
    return math.factorial(min(size, 12) - 1) ** min(math.prod(outer), 12) < _FEW


def failures(spec: Structure, prover: Prover, *, seed: int = 0) -> Iterator[tuple[list[str], float]]:
    """Yield the groups that move, and the change of the outputs, for each witness that changes them too much."""
    for permutation in witnesses(spec, seed):
        error = prover.error_of(permutation)
        if not error <= prover.stage.rtol:
            yield list(permutation.entries), error


def moved_by(spec: Structure) -> set[str]:
    """Return the tensors that the free groups of a spec move."""
    return {tensor for name in spec.free for tensor, _ in spec.members[name]}


def culprits(spec: Structure, prover: Prover, groups: Collection[str], *, seed: int = 0) -> list[str]:
    """Return the groups that change an output; if only several together do, the last one it takes.

    Args:
        spec: The symmetries.
        prover: What runs the model.
        groups: Groups that change an output when all of them move, as they do by ``random_permutation`` of this seed.
        seed: Seed of the permutations.
    """

    def fails(names: Sequence[str]) -> bool:
        return not prover.error_of(random_permutation(spec, seed, names)) <= prover.stage.rtol

    def wrong(names: list[str]) -> list[str]:
        if len(names) == 1:
            return names
        middle = len(names) // 2
        found = [name for half in (names[:middle], names[middle:]) if fails(half) for name in wrong(half)]
        return found or _last_needed(names, fails)

    return wrong(list(groups))


def _last_needed(names: list[str], fails: Callable[[list[str]], bool]) -> list[str]:
    low, high = 0, len(names)  # the first `low` are fine together, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(names[:middle]) else (middle, high)
    return names[high - 1 : high]
