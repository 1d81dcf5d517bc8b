"""Proof of a traced spec: groups that change an output after all are frozen, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from .inputs import Inputs
from .permutation import permute_, random_permutation
from .spec import PermutationSpec
from .verification import RTOL, Prover, culprits, moved_by


def proven(
    spec: PermutationSpec, model: nn.Module, inputs: Inputs, *, outputs: Sequence[str] | None, lost: Sequence[str]
) -> PermutationSpec:
    """Try a spec out on a randomised float64 copy of a model, and freeze the groups that change an output after all.

    Args:
        spec: What was traced.
        model: The model; not changed.
        inputs: The inputs that it was traced on. Others of another length or size are made from them.
        outputs: The output fields that must not change.
        lost: The parameters that the traced pass did not reach.
    """
    prover = Prover(model, inputs, outputs=outputs, moved=moved_by(spec))
    spec = _without_culprits(spec, prover, lost)
    both = prover.take_others() if spec.free else []
    return _without_culprits(spec, prover, lost, both) if len(both) > 1 else spec


def _without_culprits(
    spec: PermutationSpec, prover: Prover, lost: Sequence[str], inputs: Sequence[str] = ()
) -> PermutationSpec:
    while spec.free:
        permutation = random_permutation(spec, 0, spec.free)
        error = prover.try_out(lambda m: permute_(m, permutation))  # noqa: B023  # called at once
        if error <= RTOL:
            break
        wrong = culprits(spec, prover, RTOL)
        reason = "The tracing rules are wrong for this architecture; please report it."
        if lost:
            reason = f"Parameters that the traced pass did not reach, such as {lost[0]!r}, take part: give more inputs."
        elif inputs:
            reason = f"This was traced on {inputs[0]} and does not hold on {inputs[1]}: give longer or more inputs."
        warnings.warn(
            f"permuting {wrong[:3]} ({len(wrong)} groups) changes the outputs by {error:.2g}: frozen. {reason}",
            stacklevel=4,
        )
        spec = spec.freeze(wrong, "verification failed")
    return spec
