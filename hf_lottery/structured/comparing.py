"""Comparing: the outputs of a smaller network and of the large one, both in their own precision."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..symmetry.errors import SymmetryError
from ..symmetry.inputs import Inputs, other_inputs
from ..symmetry.kept import unchanged
from ..symmetry.outputs import chosen_outputs
from ..symmetry.trace import call, plain_kernels

_OWN = {torch.float64: 1e-10, torch.float32: 1e-5}
_ROUNDINGS = 100  # in other precisions


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
        SymmetryError: The outputs are others.
    """
    device = next((parameter.device for parameter in reference.parameters()), torch.device("cpu"))
    inputs = tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, inputs)
    error, bound = _error(reference, small, inputs, outputs), _bound(reference)
    for other in other_inputs(inputs):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                before = _outputs(reference, other, outputs)
        except Exception:  # the large network does not take these
            continue
        error = max(error, _change(before, _outputs(small, other, outputs)))
        break
    if alike and not error <= bound:
        raise SymmetryError(
            f"the smaller network must give the same outputs within {bound:g} of the largest; received a change of "
            f"{error:.2g}, although it is the same in float64. Shrink the model in float32 or float64."
        )
    return error if alike else float("nan")


def _error(reference: nn.Module, small: nn.Module, inputs: Inputs, outputs: Sequence[str] | None) -> float:
    return _change(_outputs(reference, inputs, outputs), _outputs(small, inputs, outputs))


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
