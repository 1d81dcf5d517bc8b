"""Shrinking: a smaller network that computes what the large one computes without the units that are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..masks.mask import Mask
from ..networks.generators import kept_generators
from ..networks.names import named_tensors, unwrap
from ..networks.numbers import check_numbers
from ..networks.selection import Patterns
from ..symmetry.errors import SpecMismatchError, SymmetryError
from ..symmetry.inputs import checked_inputs
from ..symmetry.structure import Structure
from .attributes import Attributes
from .comparing import own_error
from .copies import copied, first_names
from .cutting import Cutting
from .outgoing import outgoing_axes, zeroed
from .shrunk import GroupCut, Shrunk, shapes_of
from .slicing import Slices, checked_units
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
    so, such as one that a norm reads as a whole, is kept, with the reason.

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
        SpecMismatchError: The spec is for another model, or the units for another spec.
        UnitError: The units do not fit the spec, or a group would keep nothing.
        SymmetryError: There are no inputs, or the model does not take them, or what was cut could not be proven.
    """
    inner = unwrap(model)
    spec.check_fits(inner)
    check_numbers(inner)
    slices = Slices(spec, checked_units(spec, _units_of(units, spec)))
    outputs = spec.outputs if inputs is None and outputs is None else outputs
    inputs = checked_inputs(inner, _inputs_of(inputs, spec))
    later = set(spec.select(retrain)) if retrain else set()
    with kept_generators(accelerators=torch.cuda.is_initialized()):
        workshop = Workshop(inner, slices, inputs, outputs=outputs)
        cutting = Cutting(workshop, slices)
        cutting.cut([name for name in slices.units if name not in later])
        error = _proven(workshop, cutting, slices)
        proven = dict(cutting.kept)
        cutting.cut([name for name in slices.units if name in later], prove=False)
        return _built(inner, workshop, cutting, slices, proven, inputs, outputs, error)


def _units_of(units: Any, spec: Structure) -> Mapping[str, Any]:
    fingerprint = getattr(units, "spec_fingerprint", spec.fingerprint)
    if fingerprint != spec.fingerprint:
        raise SpecMismatchError(
            f"the units must be of this spec, {spec.fingerprint[:8]}; received some of spec {fingerprint[:8]}. "
            "Choose units with the spec of this model."
        )
    found = getattr(units, "units", units)
    if not isinstance(found, Mapping):
        raise TypeError(
            f"units must be a mapping from group to bools, or a mask of units; received {type(units).__name__}. "
            "prune_units chooses units."
        )
    return found


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


def _built(
    model: nn.Module,
    workshop: Workshop,
    cutting: Cutting,
    slices: Slices,
    proven: Mapping[str, np.ndarray],
    inputs: Any,
    outputs: Sequence[str] | None,
    error: float,
) -> Shrunk:
    first = first_names(model)
    tensors = {name: t.detach() for name, t in named_tensors(model).items() if first[name] == name}
    kept = Slices(slices.spec, cutting.kept)
    small = copied(model, {name: kept.cut(name, tensor) for name, tensor in tensors.items() if kept.touches(name)})
    Attributes(small).set(cutting.changes)
    sends, same = outgoing_axes(slices.spec, first), Slices(slices.spec, proven)
    quiet = {name: new for name, tensor in tensors.items() if (new := zeroed(name, tensor, same, sends)) is not tensor}
    reference = copied(model, quiet, share=True)
    own = own_error(reference, small, inputs, outputs=outputs, alike=proven.keys() == cutting.kept.keys())
    rows = [
        GroupCut(name, units.shape[-1], kept.size(name), cutting.reasons.get(name), name in proven)
        for name, units in slices.units.items()
    ]
    old, new = shapes_of(tensors), shapes_of(named_tensors(small))
    return Shrunk(
        model=small,
        report=rows,
        units={name: torch.from_numpy(units) for name, units in cutting.kept.items()},
        changes=cutting.changes,
        shapes={name: (shape, new[name]) for name, shape in old.items() if new[name] != shape},
        parameters=(_count(model), _count(small)),
        error=(error, own),
        inputs=workshop.inputs,
    )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
