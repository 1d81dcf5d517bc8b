"""discover(): the permutation symmetries of a model, found by tracing one forward pass."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..networks.names import plain_name, unwrap
from .errors import SymmetryError
from .layout import freeze as freeze_axis
from .layout import frozen
from .outputs import chosen_outputs
from .permutation import permute_
from .rules import pointwise  # noqa: F401  # importing them registers the rules
from .solve import solve
from .spec import PermutationSpec
from .trace import Axes, Trace, call, plain_kernels
from .verification import RTOL, Prover, culprits, moves_with_weights


def discover(
    model: nn.Module,
    inputs: Mapping[str, Any] | tuple[Any, ...],
    *,
    outputs: Sequence[str] | None = None,
    freeze: Sequence[str] = (),
    strict: bool = True,
) -> PermutationSpec:
    """Trace one forward pass and find which axes may be permuted together, without changing what the model computes.

    What the traced operations do not allow for certain is frozen, and remembers why. The result is proved on a
    randomised float64 copy of the model; a group that fails is frozen with a warning. Nothing is changed: neither
    weights, nor modes, nor gradients. Give inputs that use every part of the model (every expert of a mixture).

    Args:
        model: Any module with floating parameters, in any precision and on any device.
        inputs: One call's arguments, on the model's device: a dict of keywords, or a tuple.
        outputs: Output fields that must not change. Default: all but hidden states, attentions and caches.
        freeze: Regular expressions of parameters and buffers whose axes stay as they are.
        strict: Refuse a model with a parameter that the pass did not reach; else such parameters are frozen, and the
            spec holds for inputs that do not reach them either.

    Returns:
        The spec; print it for a table of its groups.

    Raises:
        TypeError: ``model`` or ``inputs`` is of the wrong kind.
        SymmetryError: The model is quantised, has no weights yet, fails or is random in evaluation mode, does not use
            a parameter, or has no head and ``outputs`` does not say what counts.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> list(discover(model, (torch.randn(5, 4),)).free)
        ['0.weight[0]']

    References:
        Ainsworth, Hayase and Srinivasa, 2023, "Git Re-Basin", arXiv:2209.04836 (which writes the
        specification by hand).
    """
    _check_arguments(model, inputs, outputs, freeze)
    model = unwrap(model)
    named = _tensors(model)
    parameters = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    _check_tensors(named, parameters)
    trace, axes = _traced(model, inputs, outputs, named, parameters)
    lost = [n for n, tensor in named.items() if n in parameters and tensor.numel() and id(tensor) not in trace.reached]
    _freeze_unreached(lost, axes, strict)
    _freeze_chosen(axes, freeze)
    if trace.unknown:
        warnings.warn(f"operations without a rule froze what they touch: {trace.unknown}", stacklevel=2)
    spec = solve(axes, trace.seen, trace.lookups)
    return _proven(spec, Prover(model, inputs, outputs), lost)


def _traced(
    model: nn.Module, inputs: Any, outputs: Sequence[str] | None, named: Mapping[str, Tensor], parameters: set[str]
) -> tuple[Trace, dict[str, Axes]]:
    """The labels of one forward pass, and those of the parameters and buffers."""
    trace, axes = Trace(), {}
    with plain_kernels(model):
        for name, tensor in named.items():
            known = trace.axes.get(id(tensor))
            axes[name] = trace.source(tensor) if known is None else known
            if name not in parameters and not moves_with_weights(name, tensor, parameters):
                trace.freeze(tensor, "a constant buffer")
        for value in tree_leaves(inputs):
            if isinstance(value, Tensor):
                trace.label(value, tuple(frozen(size, "an input") for size in value.shape))
        try:
            with trace:
                result = call(model, inputs)
        except Exception as error:
            raise SymmetryError(
                "the model must run on the inputs; received an error from its forward pass: "
                f"{type(error).__name__}: {error} Give one call's arguments, in the model's precision and on its "
                "device; if a kernel is missing there, move the model with .float() or .cpu()."
            ) from error
        for name, value in chosen_outputs(result, outputs).items():
            trace.freeze(value, f"the output {name}")
    return trace, axes


def _proven(spec: PermutationSpec, prover: Prover, lost: Sequence[str]) -> PermutationSpec:
    """The spec without the groups that change an output after all."""
    while spec.free:
        error = prover.try_out(lambda m: permute_(m, spec.random(0)))  # noqa: B023  # called at once
        if error <= RTOL:
            break
        wrong = culprits(spec, prover, RTOL)
        reason = (
            f"Parameters that the traced pass did not reach take part, such as {lost[0]!r}: give more inputs."
            if lost
            else "The tracing rules are wrong for this architecture; please report it."
        )
        warnings.warn(
            f"permuting {wrong[:3]} ({len(wrong)} groups) changes the outputs by {error:.2g}: frozen. {reason}",
            stacklevel=3,
        )
        spec = spec.freeze(wrong, "verification failed")
    return spec


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    everything = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {plain_name(name): tensor for name, tensor in everything}


def _check_arguments(model: Any, inputs: Any, outputs: Any, freeze: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module; received {type(model).__name__}.")
    if not isinstance(inputs, Mapping | tuple):
        raise TypeError(
            f"inputs must be one call's arguments, a dict or a tuple; received {type(inputs).__name__}. "
            "Write inputs=(x,) for a single tensor."
        )
    for name, value in (("outputs", outputs), ("freeze", freeze)):
        if isinstance(value, str):
            raise TypeError(f"{name} must be a list of texts; received {value!r}. Write {name}=[{value!r}].")


def _check_tensors(named: Mapping[str, Tensor], parameters: set[str]) -> None:
    if not parameters:
        raise SymmetryError("the model must have parameters; received none.")
    for name, tensor in named.items():
        if tensor.is_meta:
            raise SymmetryError(
                f"the weights must be loaded; received {name!r} on the meta device. Load the model first."
            )
        if name in parameters and (not tensor.is_floating_point() or type(tensor.data) is not Tensor):
            raise SymmetryError(
                f"parameters must be plain floating tensors; received {name!r} of {tensor.dtype} "
                f"({type(tensor.data).__name__}). Load the model without quantization or sharding."
            )


def _freeze_unreached(lost: Sequence[str], axes: Mapping[str, Axes], strict: bool) -> None:
    if lost and strict:
        raise SymmetryError(
            f"every parameter must take part in the traced pass; received no use of {lost[:3]} "
            f"({len(lost)} in all). Give longer or more inputs, or pass strict=False to freeze them."
        )
    for name in lost:
        for axis in axes[name]:
            freeze_axis(axis, "the traced pass did not reach it")


def _freeze_chosen(axes: Mapping[str, Axes], patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            found = [name for name in axes if re.search(pattern, name)]
        except re.error as error:
            raise SymmetryError(f"freeze must hold regular expressions; received {pattern!r}: {error}.") from error
        if not found:
            raise SymmetryError(f"freeze must match parameters; received {pattern!r}, which matches none.")
        for name in found:
            for axis in axes[name]:
                freeze_axis(axis, f"frozen by {pattern!r}")
