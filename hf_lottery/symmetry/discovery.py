"""Discovery: the permutation symmetries of a model, found by tracing one forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..networks.generators import kept_generators
from ..networks.identity import identity_of, without_counters
from ..networks.names import named_tensors, plain_name, unwrap
from ..networks.selection import Patterns, select_names
from .buffers import moving_buffers
from .errors import SymmetryError
from .ghosts import Ghosts, haunted
from .inputs import Inputs, checked_inputs, kept_inputs
from .kept import unchanged
from .nodes import freeze as freeze_axis
from .nodes import frozen
from .outputs import chosen_outputs
from .passes import EVALUATION, TRAINING, Pass
from .proof import proven
from .rules import pointwise  # noqa: F401  # importing them registers the rules
from .solve import mixed_groups, solve
from .spec import PermutationSpec
from .spec_file import PROOFS
from .trace import Axes, Trace, call, plain_kernels
from .unreached import reaching_passes, tie_unreached


def discover(
    model: nn.Module,
    inputs: Mapping[str, Any] | tuple[Any, ...],
    *,
    outputs: Sequence[str] | None = None,
    exclude: Patterns | None = None,
    strict: bool = True,
    proof: str = "full",
) -> PermutationSpec:
    """Trace one forward pass and find which axes may be permuted together, without changing what the model computes.

    A group that the traced operations do not surely allow to move is frozen, with the reason. The result is proved by
    computation, as ``proof`` says; a group that fails is frozen with a warning. Weights, modes and gradients of
    the model are not changed. Give inputs that use every part of the model, such as every expert of a mixture.

    A model on the meta device is traced without its weights, so its size does not matter; pass ``proof="later"``. Ids
    and masks keep their numbers, since a pass may depend on them. (On the meta device they count as ones.)

    Args:
        model: Any module with floating parameters, in any precision and on any device.
        inputs: One call's arguments, on the model's device: a dict of keywords, or a tuple.
        outputs: Output fields that must not change. Default: all but hidden states, pooled states, attentions and
            caches, known by their names, also in the outputs of parts. Reasons in the spec name those that were kept.
        exclude: Parameters and buffers whose axes are not permuted: a regular expression that may match anywhere in a
            name, or several. A full name selects that tensor alone.
        strict: Refuse a model with a parameter that neither this pass reached, nor one in training mode or with a mask
            given to the part that owns it. Otherwise such parameters are frozen, and the spec holds for inputs that do
            not reach them either.
        proof: "full" permutes all groups at once in a float64 copy of the model with noise on every weight, on the
            inputs and on others of another length, size or batch, if the model takes any: outputs stay within 1e-8.
            "fast" does so in the model itself, in its own precision and on the inputs alone; it needs no copy, and the
            model is put back bit for bit, also after an error or Ctrl-C. It does not show errors that rounding hides,
            that weights hide while they are zero or all the same, or that occur at other lengths alone. "later" tries
            nothing: the spec says so until ``spec.verify`` is called with loaded weights. A model with weights on the
            meta device can only be proven later.

    Returns:
        The spec; print it for a table of its groups.

    Raises:
        TypeError: ``model`` or ``inputs`` is of the wrong kind.
        ValueError: ``proof`` is not one of these words.
        SymmetryError: The model is quantised, has no weights yet (or, if it is proven later, does what depends on their
            numbers), fails or is random in evaluation mode, does not use a parameter, or has no head and ``outputs`` is
            not given; or a pattern matches nothing.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> list(discover(model, (torch.randn(5, 4),)).free)
        ['0.weight[0]']

    References:
        Ainsworth, Hayase and Srinivasa, 2023, "Git Re-Basin", arXiv:2209.04836 (which writes the
        specification by hand).
    """
    inputs = _checked_arguments(model, inputs, outputs, proof)
    model = unwrap(model)
    named = named_tensors(model, numbers=False)
    parameters = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    _check_tensors(named, parameters)
    if proof != "later":
        _check_loaded(named, inputs)
    with kept_generators(accelerators=torch.cuda.is_initialized()), unchanged(model):
        before = identity_of(model)
        movable = parameters | moving_buffers(model, inputs, named, parameters)
        trace, axes = _traced(model, inputs, outputs, named, movable)
        lost = [n for n, t in named.items() if n in parameters and t.numel() and not trace.was_reached(t)]
        with _ghosts_in(model, named, inputs) as (_, given):
            ways = reaching_passes(model, given, lost)
        by = partial(_traced, model, inputs, outputs, named, movable)
        lost = tie_unreached(axes, lost, ways, lambda way: by(way)[1])
        unread = [n for n in named if n in movable - parameters and not trace.was_reached(named[n])]
        _tie_unread_buffers(unread, axes, by)
        network = without_counters(before, identity_of(model))
    _freeze_unreached(lost, axes, strict)
    _freeze_excluded(axes, exclude)
    if trace.unknown:
        warnings.warn(f"operations without a rule froze what they touch: {trace.unknown}", stacklevel=2)
    axes = {name: its_axes for name, its_axes in axes.items() if named[name].numel()}  # an empty tensor has no units
    reads = {name: sorted(trace.origins.contracted.get(name, ())) for name in axes}
    solved = solve(axes, trace.seen, trace.lookups)
    mixed = mixed_groups(axes, trace.mixed)
    spec = PermutationSpec(*solved, network=network, proof=proof, reads=reads, mixed=mixed)
    spec.inputs, spec.outputs = kept_inputs(inputs), None if outputs is None else tuple(outputs)
    if proof == "later":
        return spec
    with kept_generators(accelerators=torch.cuda.is_initialized()):
        return proven(spec, model, inputs, outputs=outputs, lost=lost, ways=ways)


def _traced(
    model: nn.Module,
    inputs: Any,
    outputs: Sequence[str] | None,
    named: Mapping[str, Tensor],
    movable: Collection[str],
    way: Pass = EVALUATION,
) -> tuple[Trace, dict[str, Axes]]:
    """Trace one forward pass; return the trace and the axes of the parameters and buffers."""
    with plain_kernels(model), _ghosts_in(model, named, inputs) as (ghosts, given):
        trace, axes = Trace(ghosts), {}
        for name, tensor in named.items():
            shown = ghosts.of(tensor) if ghosts else tensor
            axes[name] = trace.source(shown)
            trace.origins.add(name, shown)
            if name not in movable:
                for axis in axes[name]:
                    freeze_axis(axis, "a constant buffer" if not tensor.is_meta else "a buffer on the meta device")
        for value in tree_leaves(given):
            if isinstance(value, Tensor):
                trace.label(value, tuple(frozen(size, "an input") for size in value.shape))
        try:
            with trace, way.on(model):
                result = call(model, given)
        except SymmetryError:
            raise
        except Exception as error:
            raise SymmetryError(
                "the model must run on the inputs; received an error from its forward pass: "
                f"{type(error).__name__}: {str(error).rstrip('. ')}. Give one call's arguments, in the "
                "model's precision and on its device; if a kernel is missing there, "
                "move the model with .float() or .cpu()."
            ) from error
        for name, value in chosen_outputs(result, outputs).items():
            trace.freeze(value, f"the output {name}")
            trace.reads.use(value)
    trace.reads.settle()
    return trace, axes


@contextmanager
def _ghosts_in(model: nn.Module, named: Mapping[str, Tensor], inputs: Inputs) -> Iterator[tuple[Ghosts | None, Inputs]]:
    """Put ghosts where tensors have no numbers, on the device of those that have some.

    Yields:
        What runs the operations (None if there are no ghosts), and the inputs as the model then takes them.
    """
    tensors = [*named.values(), *(value for value in tree_leaves(inputs) if isinstance(value, Tensor))]
    if not any(tensor.is_meta for tensor in tensors):
        yield None, inputs
        return
    ghosts = Ghosts(next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu")))
    with haunted(model, ghosts):
        yield ghosts, tree_map(ghosts.given, inputs)


def _checked_arguments(model: Any, inputs: Any, outputs: Any, proof: Any) -> Inputs:
    if proof not in PROOFS:
        raise ValueError(f"proof must be one of {PROOFS}; received {proof!r}.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module; received {type(model).__name__}.")
    if isinstance(outputs, str):
        raise TypeError(f"outputs must be a list of texts; received {outputs!r}. Write outputs=[{outputs!r}].")
    return checked_inputs(unwrap(model), inputs)


def _check_loaded(named: Mapping[str, Tensor], inputs: Inputs) -> None:
    given = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    leaves = [(f"the input {key}", leaf) for key, value in given for leaf in tree_leaves(value)]
    for name, tensor in [*((repr(name), tensor) for name, tensor in named.items()), *leaves]:
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise SymmetryError(
                f"the weights and inputs must be loaded to prove the spec; received {name} on the meta device. Load "
                'the model first, or pass proof="later" and call spec.verify when it is loaded.'
            )


def _check_tensors(named: Mapping[str, Tensor], parameters: set[str]) -> None:
    if not parameters:
        raise SymmetryError("the model must have parameters; received none.")
    for name, tensor in named.items():
        if name in parameters and tensor.is_complex():
            raise SymmetryError(
                f"parameters must be real; received {name!r} of {tensor.dtype}. Write the layer with two real "
                "parameters and torch.complex, or with torch.view_as_complex of one."
            )
        if name in parameters and tensor.layout is not torch.strided:
            raise SymmetryError(
                f"parameters must be plain floating tensors; received {name!r} in the layout {tensor.layout}. "
                "Put a plain parameter in its place, made of weight.to_dense()."
            )
        if name in parameters and (not tensor.is_floating_point() or type(tensor.data) is not Tensor):
            raise SymmetryError(
                f"parameters must be plain floating tensors; received {name!r} of {tensor.dtype} "
                f"({type(tensor.data).__name__}). Load the model without quantization or sharding."
            )


def _tie_unread_buffers(unread: Sequence[str], axes: Mapping[str, Axes], traced: Callable[[Pass], Any]) -> None:
    """Tie buffers that evaluation does not read, such as counts of codes, as training does; freeze the others."""
    with suppress(SymmetryError):  # the model need not run in training mode on these inputs
        unread = tie_unreached(axes, unread, [TRAINING], lambda way: traced(way)[1])
    for name in unread:
        for axis in axes[name]:
            freeze_axis(axis, "a buffer that evaluation does not read")


def _freeze_unreached(lost: Sequence[str], axes: Mapping[str, Axes], strict: bool) -> None:
    if lost and strict:
        raise SymmetryError(
            f"every parameter must take part in the traced pass; received no use of {lost[:3]} "
            f"({len(lost)} in all). Give longer or more inputs, or pass strict=False to freeze them."
        )
    for name in lost:
        for axis in axes[name]:
            freeze_axis(axis, "the traced pass did not reach it")


def _freeze_excluded(axes: Mapping[str, Axes], exclude: Patterns | None) -> None:
    for pattern in [exclude] if isinstance(exclude, str) else exclude or ():
        kept = set(select_names(axes, exclude=pattern, what="a parameter or buffer", error=SymmetryError))
        for name in axes.keys() - kept:
            for axis in axes[name]:
                freeze_axis(axis, f"excluded by {pattern!r}")
