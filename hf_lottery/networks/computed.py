"""Computed weights: weights that a module makes from other parameters in each forward pass.

``torch.nn.utils.prune``, the old weight and spectral norm, and every parametrization keep the parameter under another
name. The zeros of that parameter are then not the zeros of the network.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .modes import evaluating
from .names import base_modules

_ENDINGS = ("_orig", "_g", "_v")  # of the parameters that the weight is made from
REMEDY = (
    "To cover it, make it a plain parameter with torch.nn.utils.prune.remove, parametrize.remove_parametrizations or "
    "remove_weight_norm"
)


def computed_weights(model: nn.Module) -> dict[str, nn.Module]:
    """Find the weights that are computed: plain name of the weight -> its module."""
    return {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in base_modules(model)
        for name in computed_names(module)
    }


def computed_names(module: nn.Module) -> list[str]:
    """Return the module's own tensors that are computed, such as ``weight``."""
    parametrized = [*_parametrizations(module)]
    return [*parametrized, *dict.fromkeys(name for name, _ in _plain_sources(module))]


def sources_of_computed(model: nn.Module) -> set[int]:
    """Return the ``id`` of every parameter that a weight is computed from."""
    found = {id(source) for _, module in base_modules(model) for _, source in _plain_sources(module)}
    for _, module in base_modules(model):
        found |= {id(source) for made in _parametrizations(module).values() for source in made.parameters()}
    return found


def nonzeros(module: nn.Module, name: str) -> Tensor:
    """Return where a computed tensor is not zero, as a bool tensor."""
    if name in _parametrizations(module):
        with evaluating(module):  # in training mode the spectral norm would take a step
            return getattr(module, name) != 0
    # The attribute may be older than a state that was loaded. A product is zero where one of its factors is.
    factors = [source.detach() != 0 for made, source in _plain_sources(module) if made == name]
    if (mask := getattr(module, f"{name}_mask", None)) is not None:
        factors.append(mask != 0)
    return functools.reduce(torch.logical_and, factors)


def computed_in(names: Iterable[str]) -> list[str]:
    """Return those of the names of a state dict that a weight is computed from."""
    names = set(names)
    pairs = {name for name in names if {f"{name[:-2]}_g", f"{name[:-2]}_v"} <= names and name[-2:] in ("_g", "_v")}
    return sorted(n for n in names if n in pairs or n.endswith("_orig") or "parametrizations." in n)


def _parametrizations(module: nn.Module) -> dict[str, nn.Module]:
    if not is_parametrized(module):
        return {}
    return dict(module.get_submodule("parametrizations").named_children())


def _plain_sources(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name of each tensor that hooks compute, with each of the parameters that it is made from."""
    for own, parameter in module._parameters.items():
        for ending in _ENDINGS:
            name = own.removesuffix(ending)
            if name != own and parameter is not None and isinstance(vars(module).get(name), Tensor):
                yield name, parameter
