"""Changes: how much the outputs of a model differ from what they were, and whether that says anything."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import SymmetryError

_SAMPLE = 1_000_000
_ROUNDING = 1e-4  # rounding of 1e-16 is then a change of 1e-12; what an output of this size really does is still seen


class Baseline:
    """The outputs of a model, and the scale of each, with which other outputs are compared.

    An element's change is relative to its own size, or to the scale of its output where it is smaller. The scale is the
    lower quarter of the sizes of the elements that depend on the weights, so that neither a mask's fill nor one huge
    number hides a change of the others. It is not so small that the rounding of numbers near zero is a change.

    Args:
        outputs: The outputs by name. They are copied.

    Raises:
        SymmetryError: An output holds NaN, or no finite number at all.
    """

    def __init__(self, outputs: Mapping[str, Tensor]):
        self.values = {name: _numbers(tensor).clone() for name, tensor in outputs.items()}
        self.scales = dict.fromkeys(self.values, 0.0)
        for name, value in self.values.items():
            if value.isnan().any():
                raise SymmetryError(_NOT_FINITE.format("NaN", name))
            if value.numel() and not value.isfinite().any():
                raise SymmetryError(_NOT_FINITE.format("no finite number", name))

    def measure(self, other: Mapping[str, Tensor]) -> None:
        """Find the scale of every output from the outputs that other weights give.

        Raises:
            SymmetryError: No output, or none but integers, depends on those weights.
        """
        counts, largest = [], 0.0
        for name, value in self.values.items():
            live = _differs(value, _numbers(other[name]) if name in other else None) & value.isfinite()
            if not live.any():
                continue
            counts.append(name)
            if value.is_floating_point():
                sizes = value[live].abs()
                largest = max(largest, float(sizes.max()))
                sizes = sizes[:: 1 + len(sizes) // _SAMPLE]
                self.scales[name] = float(sizes.kthvalue(1 + len(sizes) // 4).values)
        least = _ROUNDING * min(largest, 1.0)
        self.scales = {name: max(scale, least) for name, scale in self.scales.items()}
        if not any(self.values[name].is_floating_point() for name in counts):
            received = f"integers alone ({counts[:3]})" if counts else f"{[*self.values][:3]}, which stay the same"
            raise SymmetryError(
                f"an output must be a floating number that depends on the permuted weights; received {received}. "
                "Return what the integers come from as well, choose others with outputs=[...], or give other inputs."
            )

    def change(self, after: Mapping[str, Tensor]) -> float:
        """Return the largest change of an element of any output, or the share of integers that differ.

        It is infinite where a value is NaN, has become infinite, or has ceased to be, and where a shape changed.
        """
        if after.keys() != self.values.keys():
            return float("inf")
        return max(
            (_change(old, _numbers(after[name]), self.scales[name]) for name, old in self.values.items()), default=0.0
        )


_NOT_FINITE = (
    "the outputs must be finite numbers to be compared; received {} in the output {!r}, with weights that were "
    "randomised. Choose the others with outputs=[...], or give inputs that are not masked out as a whole."
)


def _numbers(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.layout != torch.strided and not tensor.is_nested:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.double() if tensor.is_floating_point() else tensor


def _differs(old: Tensor, new: Tensor | None) -> Tensor:
    if new is None or new.shape != old.shape:
        return torch.ones_like(old, dtype=torch.bool)
    return old != new


def _change(old: Tensor, new: Tensor, scale: float) -> float:
    if old.shape != new.shape or old.dtype != new.dtype:
        return float("inf")
    if not old.numel():
        return 0.0
    if not old.is_floating_point():
        return (old != new).double().mean().item()
    finite = old.isfinite()
    if not torch.equal(old[~finite], new[~finite]) or not new[finite].isfinite().all():
        return float("inf")
    old, new = old[finite], new[finite]
    return ((old - new).abs() / old.abs().clamp(min=max(scale, 1e-30))).max().item()
