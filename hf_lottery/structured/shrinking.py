"""Shrinking: a smaller network that computes what the large one computes without the units that are cut."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..masks.mask import Mask
from ..networks.generators import kept_generators
from ..networks.names import named_tensors, tied_names, unwrap
from ..networks.numbers import check_numbers
from ..networks.selection import Patterns
from ..symmetry.errors import SpecMismatchError, SymmetryError
from ..symmetry.inputs import Inputs, checked_inputs
from ..symmetry.structure import Structure
from .attributes import Attributes, size_changes
from .comparing import own_error
from .configuration import configure_, field_changes
from .copies import copied
from .cutting import Cutting
from .folding import fold_, live_units
from .outgoing import outgoing_axes, zeroed
from .slicing import Slices, checked_units
from .small_network import GroupCut, Shrunk, shapes_of
from .workshop import PROVEN, Workshop


def shrink(model: nn.Module, spec: Structure, units: Any, **options: Any) -> nn.Module:
    """Return a smaller network without the units that are cut: the model of :func:`shrunk`, with its arguments."""
    return shrunk(model, spec, units, **options).model


def shrunk(
    model: nn.Module,
    spec: Structure,
    units: Mask | Mapping[str, Any],
    *,
    inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    outputs: Sequence[str] | None = None,
    retrain: Patterns = (),
) -> Shrunk:
    """Cut units out of a network, prove that the rest computes the same, and say what was cut.

    Every tensor loses the indices of the units that are cut, and the sizes that modules know are set. The outputs must
    then be those of ``model`` with zeros in all weights through which these units send. A group for which this is not
    so, such as one that a norm reads as a whole, is kept, with the reason. If a configuration of the model's class can
    express the new sizes, the small network has it.

    Args:
        model: The network; not changed.
        spec: Its spec, from ``discover``.
        units: Group -> bools of ``spec.entry_shape(group)``, True keeps; or a mask of units. Of any other mask, the
            units that it leaves dead are cut, and the outputs must be those of ``model`` under the mask.
        inputs: One call's arguments, to prove it on. Default: those that the spec was discovered on.
        outputs: Output fields that count. Default: those that ``discover`` was given.
        retrain: Groups to cut even if this changes the outputs: regular expressions as for ``spec.select``. Of these it
            is only shown that the network still runs. Train it afterwards.

    Raises:
        TypeError: The model is no module, or the spec no spec.
        SpecMismatchError: The spec is for another model, or the units for another spec.
        UnitError: The units do not fit the spec, or a group would keep nothing.
        SymmetryError: There are no inputs, or the model does not take them, or what was cut could not be proven.
    """
    inner = _checked(model, spec)
    check_numbers(inner)
    outputs = spec.outputs if inputs is None and outputs is None else outputs
    inputs = checked_inputs(inner, _inputs_of(inputs, spec))
    later = set(spec.select(retrain)) if retrain else set()
    task = _task(inner, spec, units, inputs)
    slices = Slices(spec, checked_units(spec, task.units))
    with kept_generators(accelerators=torch.cuda.is_initialized()):
        workshop = Workshop(inner, slices, inputs, outputs=outputs)
        cutting = Cutting(workshop, slices)
        cutting.cut([name for name in slices.units if name not in later])
        error = _proven(workshop, cutting, slices)
        proven = Slices(spec, dict(cutting.kept))
        cutting.cut([name for name in slices.units if name in later], prove=False)
        kept = Slices(spec, cutting.kept)
        small = _small(inner, task.weights, cutting, kept)
        fits = configure_(small, inner, _sizes(kept), inputs, outputs=outputs)
        reference = task.reference or _without_what_is_sent(inner, proven)
        alike = proven.units.keys() == cutting.kept.keys()
        own = own_error(reference, small, inputs, outputs=outputs, alike=alike)
    rows = [
        GroupCut(name, units.shape[-1], kept.size(name), cutting.reasons.get(name), name not in later)
        for name, units in slices.units.items()
    ]
    return _result(inner, small, cutting, rows, (error, own), workshop.inputs, fits)


def _checked(model: Any, spec: Any) -> nn.Module:
    if not isinstance(model, nn.Module) or not isinstance(spec, Structure):
        raise TypeError(
            f"shrinking needs a torch module and its spec; received {type(model).__name__} and {type(spec).__name__}. "
            "Of a ticket, build the model; discover(model, batch) makes the spec."
        )
    inner = unwrap(model)
    spec.check_fits(inner)
    return inner


@dataclass
class _Task:
    """What to cut, the weights to cut it from, and the model to compare with if it is not the given one."""

    units: Mapping[str, Any]
    weights: nn.Module
    reference: nn.Module | None = None


def _task(model: nn.Module, spec: Structure, units: Any, inputs: Inputs) -> _Task:
    if isinstance(units, Mask) and not hasattr(units, "units"):
        return _masked(model, spec, units, inputs)
    fingerprint = getattr(units, "spec_fingerprint", spec.fingerprint)
    if fingerprint != spec.fingerprint:
        raise SpecMismatchError(
            f"the units must be of this spec, {spec.fingerprint[:8]}; received some of spec {fingerprint[:8]}. "
            "Choose units with the spec of this model."
        )
    found = getattr(units, "units", units)
    if not isinstance(found, Mapping):
        raise TypeError(
            f"units must be a mapping from group to bools, or a mask; received {type(units).__name__}. "
            "prune_units chooses units; of a ticket, pass ticket.mask."
        )
    return _Task(found, model)


def _masked(model: nn.Module, spec: Structure, mask: Mask, inputs: Inputs) -> _Task:
    """Return the units that a mask leaves alive, and the masked model before and after constants were folded."""
    units, folds = live_units(model, spec, mask, inputs)
    if all(kept.all() for kept in units.values()):
        warnings.warn(
            "the mask leaves no unit dead, so nothing is cut. prune_units chooses units to remove.", stacklevel=4
        )
    tensors, first = named_tensors(model), tied_names(model)
    masked = {first[name]: tensors[name].detach().masked_fill(~kept.to(tensors[name].device), 0)
              for name, kept in mask.items()}  # fmt: skip
    folded = {first[name]: tensors[name].detach().clone() for name in (*folds.added, *folds.removed)}
    weights = copied(model, {**folded, **{name: tensor.clone() for name, tensor in masked.items()}}, share=True)
    fold_(weights, folds)
    return _Task(units, weights, copied(model, masked, share=True))


def _inputs_of(inputs: Any, spec: Structure) -> Any:
    if inputs is None and spec.inputs is None:
        raise SymmetryError(
            "inputs must be given to prove a smaller network; received none, and a spec from a file has none. "
            "Pass inputs, one call's arguments."
        )
    return spec.inputs if inputs is None else inputs


def _proven(workshop: Workshop, cutting: Cutting, slices: Slices) -> float:
    """Cut everything anew from the whole network, and return the change of the outputs on all inputs."""
    kept = Slices(slices.spec, cutting.kept)
    workshop.send_nothing(kept)
    workshop.slice([name for name in workshop.places.owners if kept.touches(name)], kept)
    workshop.set(cutting.changes)
    error = workshop.error(others=True)
    if not error <= PROVEN:
        raise SymmetryError(
            f"the smaller network must give the same outputs within {PROVEN:g}; received a change of {error:.2g} with "
            f"{[*cutting.kept][:3]} ({len(cutting.kept)} groups) cut at once. Cut fewer of them, or report the "
            "architecture."
        )
    return error


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    first = tied_names(model)
    return {name: tensor.detach() for name, tensor in named_tensors(model).items() if first[name] == name}


def _small(model: nn.Module, weights: nn.Module, cutting: Cutting, kept: Slices) -> nn.Module:
    """Return a copy of a model with those weights, without what was cut."""
    given = _own_tensors(model)
    tensors = {
        name: kept.cut(name, tensor) if kept.touches(name) else tensor.clone()
        for name, tensor in _own_tensors(weights).items()
        if kept.touches(name) or tensor is not given[name]
    }
    small = copied(model, tensors)
    Attributes(small).set(cutting.changes)
    return small


def _without_what_is_sent(model: nn.Module, slices: Slices) -> nn.Module:
    """Return the model with zeros in all weights through which units that are cut send."""
    sends = outgoing_axes(slices.spec, tied_names(model))
    new = {name: zeroed(name, tensor, slices, sends) for name, tensor in _own_tensors(model).items()}
    return copied(model, new, share=True)


def _result(
    model: nn.Module, small: nn.Module, cutting: Cutting, rows: list[GroupCut], error: tuple[float, float],
    inputs: list[str], config_fits: bool,
) -> Shrunk:  # fmt: skip
    old, new = shapes_of(_own_tensors(model)), shapes_of(_own_tensors(small))
    return Shrunk(
        model=small,
        report=rows,
        units={name: torch.from_numpy(units) for name, units in cutting.kept.items()},
        changes=cutting.changes,
        shapes={name: (shape, new[name]) for name, shape in old.items() if new[name] != shape},
        parameters=(_count(model), _count(small)),
        error=error,
        inputs=inputs,
        fingerprint=cutting.fingerprint,
        config_fits=config_fits,
        fields=field_changes(model, small),
    )


def _sizes(kept: Slices) -> Iterator[tuple[int, int]]:
    """Yield sizes before the cut and behind it: of groups, of those that lie together on an axis, and of axes."""
    shapes = kept.spec.shapes
    axes = [(name, axis) for name, shape in shapes.items() if kept.touches(name) for axis in range(len(shape))]
    for old, news in size_changes(Slices(kept.spec, {}), kept, axes).items():
        yield from ((old, new) for new in news)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
