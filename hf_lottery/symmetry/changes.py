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
        self.scales: dict[str, float] = {}
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
        counts, largest, scales = [], 0.0, dict.fromkeys(self.values, 0.0)
        for name, value in self.values.items():
            live = self._live(name, other)
            if not live.any():
                continue
            counts.append(name)
            if value.is_floating_point():
                sizes = value[live].abs()
                largest = max(largest, float(sizes.max()))
                sizes = sizes[:: 1 + len(sizes) // _SAMPLE]
                scales[name] = float(sizes.kthvalue(1 + len(sizes) // 4).values)
        least = _ROUNDING * min(largest, 1.0)
        self.scales = {name: max(scale, least) for name, scale in scales.items()}
        if not any(self.values[name].is_floating_point() for name in counts):
            received = f"integers alone ({counts[:3]})" if counts else f"{[*self.values][:3]}, which stay the same"
            raise SymmetryError(
                f"an output must be a floating number that depends on the permuted weights; received {received}. "
                "Return what the integers come from as well, choose others with outputs=[...], or give other inputs."
            )

    def change_at_most(self, after: Mapping[str, Tensor]) -> float:
        """Return a bound on :meth:`change` that needs no scale, or infinity where it cannot say.

        Where rounding has changed an element, it depends on the weights. The scale of the outputs is at least the least
        one that such elements allow. If rounding has changed no floating number, nothing is known.
        """
        if after.keys() != self.values.keys():
            return float("inf")
        live = {name: self._live(name, after) for name, value in self.values.items() if value.is_floating_point()}
        largest = max((float(self.values[name][where].abs().max()) for name, where in live.items() if where.any()),
                      default=0.0)  # fmt: skip
        if not largest:
            return float("inf")
        return self._largest_change(after, dict.fromkeys(self.values, _ROUNDING * min(largest, 1.0)))

    def change(self, after: Mapping[str, Tensor]) -> float:
        """Return the largest change of an element of any output, or the share of integers that differ.

        It is infinite where a value is NaN, has become infinite, or has ceased to be, and where a shape changed.
        """
        return self._largest_change(after, self.scales)

    def _largest_change(self, after: Mapping[str, Tensor], scales: Mapping[str, float]) -> float:
        if after.keys() != self.values.keys():
            return float("inf")
        return max(
            (_change(old, _numbers(after[name]), scales.get(name, 0.0)) for name, old in self.values.items()),
            default=0.0,
        )

    def _live(self, name: str, other: Mapping[str, Tensor]) -> Tensor:
        """Return which finite elements of an output are others there."""
        value = self.values[name]
        return _differs(value, _numbers(other[name]) if name in other else None) & value.isfinite()

    def projection(self, outputs: Mapping[str, Tensor], seed: int) -> Tensor | None:
        """Return one number of order one that every floating element takes part in, at random; None if none can.

        Args:
            outputs: The outputs of a pass, with their gradients.
            seed: Seed of the random weights of the elements.
        """
        generator, parts, count = torch.Generator().manual_seed(seed), [], 0
        for name, old in self.values.items():
            new = outputs[name]
            if not new.requires_grad or new.is_nested:
                continue
            new = torch.view_as_real(new) if new.is_complex() else new
            live = old.isfinite() & new.detach().isfinite()
            size = old[live].abs().clamp(min=max(self.scales.get(name, 0.0), 1e-30))
            weight = torch.randn(size.shape, generator=generator, dtype=torch.float64).to(size.device)
            parts.append((new[live] * (weight / size).to(new.dtype)).sum())
            count += len(size)
        return torch.stack(parts).sum() / count**0.5 if count else None


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
