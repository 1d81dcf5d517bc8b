"""Comparing: the outputs of a smaller network and of the large one, both in their own precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..networks.modes import evaluating
from ..networks.names import named_parameters
from ..symmetry.errors import SymmetryError
from ..symmetry.inputs import Inputs, first_taken
from ..symmetry.kept import unchanged
from ..symmetry.outputs import chosen_outputs
from ..symmetry.trace import call, plain_kernels
from .copies import copied

_OWN = {torch.float64: 1e-10, torch.float32: 1e-5}
_ROUNDINGS = 100  # in other precisions
_NOISES = 10  # how many times more than another rounding of all parameters a change may be


def own_error(
    reference: nn.Module, small: nn.Module, inputs: Inputs, *, outputs: Sequence[str] | None, alike: bool
) -> float:
    """Return the largest change of an output, relative to the largest number of that output.

    It is NaN where the outputs need not be the same.

    Args:
        reference: What the small network must compute.
        small: The small network.
        inputs: One call's arguments; others of another length or size are tried too.
        outputs: Output fields that count, as for ``discover``.
        alike: Whether the outputs must be the same. Otherwise the small network only has to run.

    Raises:
        SymmetryError: The outputs are others, or the small network does not run with the kernels that the model uses.
    """
    device = next((parameter.device for parameter in reference.parameters()), torch.device("cpu"))
    inputs = tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, inputs)
    worst, bound = 0.0, _bound(reference)
    runs = [(inputs, _outputs(reference, inputs, outputs))]
    if other := first_taken(inputs, lambda given: _outputs(reference, given, outputs)):
        runs.append(other)
    for given, before in runs:
        error = _change(before, _outputs(small, given, outputs))
        worst = max(worst, error)
        if alike and not error <= bound and not error <= _NOISES * _noise(reference, given, before, outputs):
            raise SymmetryError(
                f"the smaller network must give the same outputs within {bound:g} of the largest; received a change of "
                f"{error:.2g}, more than another rounding makes, although it is the same in float64. Shrink the model "
                "in float64, with model.double()."
            )
    _check_kernels(reference, small, inputs)
    return worst if alike else float("nan")


def _check_kernels(reference: nn.Module, small: nn.Module, inputs: Inputs) -> None:
    """Check that the small network runs as the large one does outside of any proof, where kernels may ask for more."""
    try:
        _run(reference, inputs)
    except Exception:  # the large network does not run either
        return
    try:
        _run(small, inputs)
    except Exception as error:
        raise SymmetryError(
            f"the smaller network must run with the kernels that the model uses; received {type(error).__name__}: "
            f"{str(error).strip():.200}. Keep a multiple of 8 units of each group, or choose other kernels first, such "
            'as with model.set_experts_implementation("eager").'
        ) from error


def _run(model: nn.Module, inputs: Inputs) -> None:
    with evaluating(model), unchanged(model):
        call(model, inputs)


def _noise(model: nn.Module, inputs: Inputs, before: Mapping[str, Tensor], outputs: Sequence[str] | None) -> float:
    """Return the change of the outputs if every parameter is rounded in another way.

    Outputs that nearly cancel, such as those of a network before its training, change by more than their bound.
    """
    noisy, generator = {}, torch.Generator().manual_seed(0)
    for name, weight in named_parameters(model).items():
        if weight.is_floating_point():
            signs = torch.randint(0, 2, weight.shape, generator=generator).mul_(2).sub_(1).to(weight)
            noisy[name] = weight.detach() * (1 + torch.finfo(weight.dtype).eps * signs)
    return _change(before, _outputs(copied(model, noisy, share=True), inputs, outputs))


def _bound(model: nn.Module) -> float:
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return max(_OWN.get(dtype, _ROUNDINGS * torch.finfo(dtype).eps) for dtype in types)


def _outputs(model: nn.Module, inputs: Any, outputs: Sequence[str] | None) -> dict[str, Tensor]:
    with plain_kernels(model), unchanged(model):
        return {name: tensor.clone() for name, tensor in chosen_outputs(call(model, inputs), outputs).items()}


def _change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    if before.keys() != after.keys() or any(before[name].shape != after[name].shape for name in before):
        return float("inf")
    return max((_relative(before[name], after[name]) for name in before), default=0.0)


def _relative(old: Tensor, new: Tensor) -> float:
    if not old.is_floating_point():
        return float((old != new).double().mean()) if old.numel() else 0.0
    finite = old.isfinite()
    if not torch.equal(old[~finite].nan_to_num(), new[~finite].nan_to_num()) or not new[finite].isfinite().all():
        return float("inf")
    old, new = old[finite].double(), new[finite].double()
    return float((old - new).abs().max() / old.abs().max().clamp(min=1e-30)) if old.numel() else 0.0
