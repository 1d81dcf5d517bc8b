"""discover(): the permutation symmetries of a model, found by tracing one forward pass."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..mask import plain_name, unwrap
from ..permutation import permute_
from . import rules  # noqa: F401  # registers the rules
from .layout import freeze as freeze_axis
from .layout import frozen
from .outputs import chosen_outputs
from .solve import solve
from .spec import PermutationSpec, SymmetryError
from .trace import Trace, call, plain_kernels
from .verify import RTOL, Prover, culprits

def discover(
    model: nn.Module,
    inputs: Mapping[str, Any] | tuple[Any, ...],
    *,
    outputs: Sequence[str] | None = None,
    freeze: Sequence[str] = (),
    strict: bool = True,
) -> PermutationSpec:
    """Trace one forward pass and find which axes may be permuted together.

    Args:
        model: Any module with floating parameters.
        inputs: One call's arguments: a dict of keywords, or a tuple.
        outputs: Output fields that must not change. Default: all but hidden states, attentions and caches.
        freeze: Regular expressions of parameters whose axes stay as they are.
        strict: Refuse a model with a parameter that the pass did not reach; else such parameters are frozen.
    """
    trace = Trace()
    model = unwrap(model)
    named = _tensors(model)
    with plain_kernels(model):
        axes = {name: trace.axes.get(id(tensor)) or trace.source(tensor) for name, tensor in named.items()}
        _freeze_constants(model, named, axes)
        for value in tree_leaves(inputs):
            if isinstance(value, Tensor):
                trace.label(value, tuple(frozen(size, "an input") for size in value.shape))
        with trace:
            result = call(model, inputs)
        for name, value in chosen_outputs(result, outputs).items():
            trace.freeze(value, f"the output {name}")
    _check_reached(trace, model, named, axes, strict)
    for pattern in freeze:
        found = [name for name in axes if re.search(pattern, name)]
        if not found:
            raise ValueError(f"freeze must match parameters; received {pattern!r}, which matches none.")
        for name in found:
            for axis in axes[name]:
                freeze_axis(axis, f"frozen by {pattern!r}")
    if trace.unknown:
        warnings.warn(f"operations without a rule froze what they touch: {trace.unknown}", stacklevel=2)
    return _proven(solve(axes, trace.seen, trace.lookups), model, inputs, outputs)


def _proven(spec: PermutationSpec, model: nn.Module, inputs: Any, outputs: Sequence[str] | None) -> PermutationSpec:
    """The spec without the groups that change an output after all."""
    prover = Prover(model, inputs, outputs)
    while spec.free:
        error = prover.try_out(lambda m: permute_(m, spec.random(0)))  # noqa: B023  # called at once
        if error <= RTOL:
            break
        wrong = culprits(spec, prover, RTOL)
        warnings.warn(
            f"permuting {wrong[:3]} ({len(wrong)} groups) changes the outputs by {error:.2g}: frozen. The tracing rules "
            "are wrong for this architecture; please report it.",
            stacklevel=3,
        )
        spec = spec.freeze(wrong, "verification failed")
    return spec


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    everything = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {plain_name(name): tensor for name, tensor in everything}


def _freeze_constants(model: nn.Module, named: Mapping[str, Tensor], axes: Mapping[str, Any]) -> None:
    parameters = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in named:
        stem, _, last = name.rpartition(".")
        statistic = last in ("running_mean", "running_var") or f"{name.removesuffix('_mask')}_orig" in parameters
        if name not in parameters and not statistic:
            for axis in axes[name]:
                freeze_axis(axis, "a constant buffer")


def _check_reached(trace: Trace, model: nn.Module, named: Mapping[str, Tensor], axes: Mapping[str, Any], strict: bool) -> None:
    parameters = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    lost = [name for name, tensor in named.items() if name in parameters and id(tensor) not in trace.reached]
    if lost and strict:
        raise SymmetryError(
            f"every parameter must take part in the traced pass; received no use of {lost[:3]} "
            f"({len(lost)} in all). Give longer or more inputs, or pass strict=False to freeze them."
        )
    for name in lost:
        for axis in axes[name]:
            freeze_axis(axis, "the traced pass did not reach it")
