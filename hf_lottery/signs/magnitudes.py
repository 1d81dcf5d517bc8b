"""Magnitudes: the absolute values that a network gets together with the signs of a signed mask."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..masks.mask import MaskMismatchError
from ..networks.names import named_weights
from .norms import norm_parameters


def magnitudes_of(
    source: str | nn.Module | Mapping[str, Tensor], named: Mapping[str, Tensor], names: list[str]
) -> dict[str, Tensor]:
    """Return the values whose magnitudes are taken, by name, with the shape, type and device of the model's own.

    Args:
        source: ``"init"`` for the model's own values, ``"constant"`` for the standard deviation of each parameter, or
            a network or mapping.
        named: The model's parameters by name.
        names: The parameters to return values for.

    Raises:
        ValueError: The source is another string.
        MaskMismatchError: The source lacks a parameter or has it in another shape.
    """
    if isinstance(source, str):
        if source == "init":
            return {name: named[name] for name in names}
        if source != "constant":
            raise ValueError(f"magnitudes must be 'init', 'constant' or a network; received {source!r}.")
        sizes = {name: _spread(named[name]) or named[name].detach().abs().float().mean().item() for name in names}
        return {name: torch.full_like(named[name], size) for name, size in sizes.items()}
    given = named_weights(source)
    for name in names:
        if name not in given or given[name].shape != named[name].shape:
            received = list(given[name].shape) if name in given else "no such parameter"
            raise MaskMismatchError(
                f"the magnitudes of {name!r} must have shape {list(named[name].shape)}; received {received}."
            )
    return {name: given[name].to(named[name]) for name in names}


def spreads(model: nn.Module, names: list[str]) -> dict[str, float]:
    """Return for each name the standard deviation of the other parameters of its module, or else of the whole model.

    Norm parameters, and parameters that do not vary, are left out.

    Raises:
        ValueError: No parameter of the model varies.
    """
    named = named_weights(model)
    norms = norm_parameters(model)
    vary = {name: weight for name, weight in named.items() if name not in norms and _spread(weight) > 0}

    def together(weights: list[Tensor]) -> float:
        return _spread(torch.cat([weight.detach().flatten().float().cpu() for weight in weights]))

    if names and not vary:
        raise ValueError("zeros='std' needs parameters that vary; received a model without any. Use source_median.")
    everything = together(list(vary.values())) if names else 0.0
    found = {}
    for name in names:
        module = name.rpartition(".")[0]
        beside = [weight for other, weight in vary.items() if other.rpartition(".")[0] == module]
        found[name] = together(beside) if beside else everything
    return found


def _spread(weight: Tensor) -> float:
    return weight.detach().float().std(correction=0).item() if weight.numel() else 0.0
