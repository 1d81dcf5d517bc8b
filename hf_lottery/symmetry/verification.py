"""Verification: the proof by computation that a spec leaves a model's function as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..networks.display import html_table, text_table
from ..networks.names import unwrap
from .control import inert_ties, ties
from .errors import SymmetryVerificationError
from .inputs import checked_inputs
from .passes import Pass
from .permutation import Permutation, random_permutation
from .prover import Prover, culprits, moved_by, witnesses
from .randomised import Randomised
from .structure import SHOWN, Structure
from .unreached import other_passes

_HEADER = ("group", "change", "proof is empty for")


@dataclass(repr=False)
class VerifyReport:
    """What a verification found; prints as a table.

    Attributes:
        error: Largest change of an output when all groups are permuted at once: of a float relative to its own size or
            to the typical size of its output, of integers as the share of them that differ.
        errors: For each group, the largest change in the passes in which it was permuted together with others. A group
            alone is not run unless these change too much, and then the verification fails.
        inert: ``(group, tensor, axis)`` whose lone permutation changes nothing, such as a key bias under softmax. The
            proof is empty for these.
        visible: How many (group, tensor, axis) change an output when permuted alone, as they must.
        inputs: Name and shape of the inputs that the proof ran on: those that were given, and those of another length,
            size or batch if the model takes any.
        passes: Further passes that the proof ran on, because evaluation does not read all parameters, such as "in
            training mode".
    """

    error: float
    errors: dict[str, float] = field(default_factory=dict)
    inert: list[tuple[str, str, int]] = field(default_factory=list)
    visible: int = 0
    inputs: list[str] = field(default_factory=list)
    passes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        """Return a table with one line per group, the largest change first; a long table is cut."""
        return f"{self._title()}\n{text_table(_HEADER, self._rows(), limit=SHOWN)}"

    def _repr_html_(self) -> str:
        return f"<p>{self._title()}</p>\n{html_table(_HEADER, self._rows(), limit=SHOWN)}"

    def _title(self) -> str:
        axes = self.visible + len(self.inert)
        control = f", control: {self.visible} of {axes} axes matter" if axes else ""
        more = "" if len(self.inputs) > 1 else ", and no other length, size or batch could be tried"
        where = f", inputs: {' and '.join(self.inputs)}{more}" if self.inputs else ""
        also = f", also {' and '.join(self.passes)}" if self.passes else ""
        change = f"largest change of an output: {self.error:.1e}"
        return f"VerifyReport(groups: {len(self.errors)}, {change}{control}{where}{also})"

    def _rows(self) -> list[tuple[str, ...]]:
        empty: dict[str, list[str]] = {}
        for group, tensor, axis in self.inert:
            empty.setdefault(group, []).append(f"{tensor}[{axis}]")
        rows = []
        for name, error in sorted(self.errors.items(), key=lambda item: -item[1]):
            places = empty.get(name, [])
            more = f" and {len(places) - 2} more" if len(places) > 2 else ""
            rows.append((name, f"{error:.1e}", ", ".join(places[:2]) + more))
        return rows


def verify(
    spec: Structure,
    model: nn.Module,
    inputs: Mapping[str, Any] | tuple[Any, ...],
    *,
    outputs: Sequence[str] | None = None,
    rtol: float = Randomised.RTOL,
    negative_control: bool = True,
    seed: int = 0,
) -> VerifyReport:
    """Permute a randomised float64 copy of the model by the spec and compare its outputs.

    Args:
        spec: The spec to prove.
        model: The model; not changed.
        inputs: One call's arguments. Others than ``discover`` had make a better proof. Inputs of another length or
            size are made from them, and are tried as well if the model takes them.
        outputs: Output fields that must not change, as for ``discover``.
        rtol: Allowed change of an output, measured as :attr:`VerifyReport.error`.
        negative_control: Also permute each tensor's axis alone and report those that change nothing.
        seed: Seed of the noise and the permutations.

    Raises:
        TypeError: ``inputs`` is of the wrong kind.
        SymmetryVerificationError: An output changed. The message names the group.
        SymmetryError: The model does not take the inputs, or is random in evaluation mode; or its outputs prove
            nothing: they hold NaN, nothing finite, only integers, or do not depend on the weights that move.
        SpecMismatchError: The spec is for another model.
    """
    inputs = checked_inputs(unwrap(model), inputs)
    spec.check_fits(model)
    prover = Prover(Randomised(model, seed=seed, rtol=rtol), inputs, outputs=outputs, moved=moved_by(spec))
    prover.measure()
    report = VerifyReport(0.0, dict.fromkeys(spec.free, 0.0))
    for permutation in witnesses(spec, seed):
        error = prover.error_of(permutation)
        _check(spec, prover, permutation, error)
        report.error = max(report.error, error)
        report.errors |= {name: max(report.errors[name], error) for name in permutation.entries}
    if negative_control:
        report.inert = [(tie.group, tie.tensor, tie.axis) for tie in inert_ties(spec, prover, seed=seed)]
        report.visible = sum(1 for _ in ties(spec)) - len(report.inert)
    everything = random_permutation(spec, seed, spec.free)
    for way in other_passes(unwrap(model), inputs) if spec.free else ():
        report.error = max(report.error, _error_on(way, spec, prover, everything))
        report.passes.append(str(way))
    report.inputs, error = prover.take_others(everything)
    _check(spec, prover, everything, error, report.inputs)
    report.error = max(report.error, error)
    return report


def _error_on(way: Pass, spec: Structure, prover: Prover, permutation: Permutation) -> float:
    """Return the change of the outputs of another pass, once it is known to be small."""
    prover.restore()
    other = Prover(prover.stage, prover.inputs, outputs=prover.outputs, moved=moved_by(spec), way=way)
    other.measure()
    error = other.error_of(permutation)
    _check(spec, other, permutation, error)
    other.restore()
    return error


def _check(spec: Structure, prover: Prover, permutation: Permutation, error: float, inputs: Sequence[str] = ()) -> None:
    if error <= prover.stage.rtol:
        return
    prover.check_repeats()
    wrong = culprits(spec, prover, permutation.entries)
    where = f" on inputs of another length ({inputs[1]} instead of {inputs[0]})" if inputs else ""
    raise SymmetryVerificationError(
        f"a legal permutation must leave every output within {prover.stage.rtol:g}; received {error:.2g} "
        f"by {wrong[:3]}{where}. Freeze them, or report the architecture."
    )
