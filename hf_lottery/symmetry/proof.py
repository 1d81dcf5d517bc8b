"""Proof of a traced spec: groups that change an output after all are frozen, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from torch import nn

from .in_place import InPlace
from .inputs import Inputs
from .kept import kept_buffers
from .passes import Pass
from .permutation import forget_caches
from .prover import Prover, culprits, failures, moved_by, witnesses
from .randomised import Randomised
from .spec import PermutationSpec

_WRONG_RULE = "The tracing rules are wrong for this architecture; please report it."


def proven(
    spec: PermutationSpec,
    model: nn.Module,
    inputs: Inputs,
    *,
    outputs: Sequence[str] | None,
    lost: Sequence[str],
    ways: Iterable[Pass],
) -> PermutationSpec:
    """Try a spec out, and freeze the groups that change an output after all.

    A spec whose ``proof`` is "full" is tried on a randomised float64 copy of the model, at the given inputs and at
    others of another length or size. If it is "fast", it is tried at the given inputs alone, on the model itself, which
    is put back bit for bit.

    Args:
        spec: What was traced. Its ``proof`` says how to prove it.
        model: The model; not changed in the end.
        inputs: The inputs that it was traced on.
        outputs: The output fields that must not change.
        lost: The parameters that no pass reached.
        ways: Further passes that the spec must hold for, at the given inputs.

    Raises:
        SymmetryError: The model is random in evaluation mode, or its outputs prove nothing.
    """
    reason = _WRONG_RULE
    if lost:
        reason = f"Parameters that the traced pass did not reach, such as {lost[0]!r}, take part: give more inputs."
    if spec.proof == "fast":
        return _proven_in_place(spec, model, inputs, outputs, reason, ways)
    prover = Prover(Randomised(model), inputs, outputs=outputs, moved=moved_by(spec))
    spec = _on_ways(_without_culprits(spec, prover, reason), prover, ways)
    if not spec.free:
        return spec
    both, error = prover.take_others(witnesses(spec)[0])
    if error <= prover.stage.rtol:
        return spec
    if not lost:
        reason = f"This was traced on {both[0]} and does not hold on {both[1]}: give longer or more inputs."
    return _without_culprits(spec, prover, reason)


def _on_ways(spec: PermutationSpec, prover: Prover, ways: Iterable[Pass], *, level: int = 5) -> PermutationSpec:
    """Return the spec with those groups frozen that change an output of other passes."""
    for way in ways if spec.free else ():
        prover.restore()
        other = Prover(prover.stage, prover.inputs, outputs=prover.outputs, moved=moved_by(spec), way=way)
        try:
            reason = f"They do so {way}; in evaluation mode they do not."
            spec = _without_culprits(spec, other, reason, level=level)
        finally:
            other.restore()
    return spec


def _proven_in_place(
    spec: PermutationSpec,
    model: nn.Module,
    inputs: Inputs,
    outputs: Sequence[str] | None,
    reason: str,
    ways: Iterable[Pass],
) -> PermutationSpec:
    stage = InPlace(model, spec)
    with kept_buffers(model):
        try:
            prover = Prover(stage, inputs, outputs=outputs, moved=moved_by(spec))
            return _on_ways(_without_culprits(spec, prover, reason, level=5), prover, ways, level=6)
        finally:
            try:
                stage.restore()
            finally:
                stage.restore()  # Ctrl-C may have come before the first one began
                forget_caches(model)


def _without_culprits(spec: PermutationSpec, prover: Prover, reason: str, *, level: int = 4) -> PermutationSpec:
    if not spec.free:
        prover.check_repeats()
    while failed := next(failures(spec, prover), None):
        groups, error = failed
        wrong = culprits(spec, prover, groups)
        warnings.warn(
            f"permuting {wrong[:3]} ({len(wrong)} groups) changes the outputs by {error:.2g}: frozen. {reason}",
            stacklevel=level,
        )
        spec = spec.freeze(wrong, "verification failed")
    return spec
