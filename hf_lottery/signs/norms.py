"""Norm parameters: find them, and train with them moved towards their initial values.

A signed mask carries no norm parameters, so the network that receives it has them at their initial values. "A Winning
Sign" (AWS, Oh et al., 2025) trains for that: at each step, forward and backward use
``(1 - alpha) * psi + alpha * psi_init`` with a random ``alpha`` in place of the norm parameters ``psi``, and the
optimizer's step changes ``psi`` itself.

References:
    Oh, Baik and Lee, 2025, "Find A Winning Sign: Sign Is All We Need to Win the Lottery", arXiv:2504.05357.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..networks.display import TableDict, first_names
from ..networks.names import named_parameters, named_weights, unwrap
from ..networks.numbers import check_numbers
from ..networks.selection import Patterns, select_names
from ..networks.shards import class_name, is_sharded, local, part_of, reshard

Metric = TypeVar("Metric")
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_OTHERS = (nn.Linear, nn.Embedding, _ConvNd)  # never norms, even if "Norm" is in the name of a subclass


class NormParameters(TableDict[nn.Parameter]):
    """Parameter name -> parameter, in the model's order; what :func:`norm_parameters` returns. Prints as a table.

    Attributes:
        kinds: Parameter name -> class of the module that owns it, such as ``"LayerNorm"``.
        left_out: Scale-like parameters that belong to no norm (layer scales, logit scales, state-space decays ...).
            They train as usual, and a signed mask gives them their sign.
    """

    header = ("name", "shape", "kind")

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], kinds: Mapping[str, str], *, left_out: Sequence[str] = ()
    ):
        super().__init__(parameters)
        self.kinds = dict(kinds)
        self.left_out = tuple(left_out)

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the present values, by name, to where the parameters are."""
        check_numbers(self)
        return {name: parameter.detach().clone() for name, parameter in self.items()}

    def row(self, name: str, value: nn.Parameter) -> Sequence[str]:
        return name, str(list(value.shape)), self.kinds[name]

    def __repr__(self) -> str:
        left_out = f"scale-like, left out: {first_names(self.left_out)}"
        return f"{super().__repr__()}\nparameters: {len(self)}\n{left_out}"


def norm_parameters(
    model: nn.Module, *, include: Patterns | None = None, exclude: Patterns | None = None
) -> NormParameters:
    """Find the parameters of the normalization layers of a model, by the class of the module and never by name.

    A norm is a batch, instance, group, layer or RMS norm of torch, or a module without children whose class has "Norm"
    in its name, as every norm of transformers does. All its own parameters are taken; one with several names is taken
    once.

    Args:
        model: Any module, also a compiled or data-parallel one.
        include: Names or regular expressions, searched for in the names of all parameters. What matches is taken
            *instead of* the norms: ``r"norm|layer_scale"`` takes layer scales too.
        exclude: Names or regular expressions of the parameters to leave out again.

    Returns:
        Parameter name -> parameter; empty for a model without norms.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: A pattern is malformed or matches nothing.

    Example:
        >>> print(norm_parameters(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))))
        name      shape  kind
        1.weight  [8]    BatchNorm2d
        1.bias    [8]    BatchNorm2d
        parameters: 2
        scale-like, left out: none

    Reference:
        Oh et al., 2025, arXiv:2504.05357. Their code knows batch and layer norms by class and stops at any other.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module; received {type(model).__name__}. Load it first.")
    owners = {}  # the norm that owns a parameter wins over another module that shares it
    for module in sorted(unwrap(model).modules(), key=_is_norm):
        owners.update((id(parameter), module) for parameter in module._parameters.values() if parameter is not None)
    named = {name: p for name, p in named_parameters(model, numbers=False).items() if p.is_floating_point()}
    norms = [name for name, parameter in named.items() if _is_norm(owners[id(parameter)])]
    taken = select_names(named, include=include, exclude=exclude, default=norms)
    kinds = {name: class_name(owners[id(named[name])]) for name in taken}
    left_out = [name for name, p in named.items() if name not in kinds and _is_scale(name, p, owners[id(p)])]
    return NormParameters({name: named[name] for name in taken}, kinds, left_out=left_out)


@contextmanager
def interpolated_norms(
    model: nn.Module | Mapping[str, Tensor], initial: Mapping[str, Tensor], alpha: float | Tensor
) -> Iterator[None]:
    """Run forward and backward with every norm parameter at ``(1 - alpha) * psi + alpha * psi_init``.

    In the block the parameters hold the interpolated values. Gradients that reach them are multiplied by ``1 - alpha``
    as they are accumulated, which by the chain rule makes them the gradients of ``psi``; this also holds over
    micro-batches, under data parallelism and with gradient checkpointing. After the block the parameters hold ``psi``
    again, bit for bit. The raw parameters are interpolated, which is right for every norm whose output is linear in
    them, also for Gemma's ``1 + weight``. Under FSDP2 all micro-batches of a step must have the same ``alpha``, as
    their gradients meet at the last one.

    Args:
        model: The module, or its parameters by name, such as :func:`norm_parameters`, which saves the search. Under
            FSDP2 pass the module, unless every forward pass since the last step had its backward pass.
        initial: Name -> ``psi_init`` of the norm parameters, as :meth:`NormParameters.snapshot` of the fresh model
            returns them.
        alpha: Share of the initial value, in [0, 1]; 0 changes nothing. A tensor without axes on the parameters' device
            is read there, unchecked, so that a CUDA graph can run with many values.

    Raises:
        ValueError: ``alpha`` is out of range, or the model has no such name or shape.
        RuntimeError: At the end of the block, if something else wrote to the parameters, such as ``optimizer.step()``.

    Example:
        >>> model = nn.LayerNorm(2)
        >>> initial = norm_parameters(model).snapshot()
        >>> _ = nn.init.constant_(model.weight, 3.0)
        >>> with interpolated_norms(model, initial, 0.25):
        ...     model.weight[0].item()
        2.5
        >>> model.weight[0].item()
        3.0

    Reference:
        Oh et al., 2025, arXiv:2504.05357, where ``psi_init`` is gain 1 and shift 0 by definition.
    """
    if not isinstance(alpha, Tensor) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1]; received {alpha}. It is the share of the initial value.")
    named = named_weights(model)
    _check_initial(named, initial)
    names = list({id(named[name]): name for name in initial}.values())  # a shared parameter has one of its names
    parameters = [named[name] for name in names]
    raw = [local(parameter).clone() for parameter in parameters]
    # torch never calls the hook of a sharded parameter: what was added to its gradient is scaled at the end.
    sharded = {p: None if p.grad is None else local(p.grad).clone() for p in parameters if is_sharded(p)}
    handles: list[Any] = []
    try:
        for name, parameter in zip(names, parameters, strict=True):
            values = local(parameter)
            values.lerp_(_part(initial[name], parameter).to(values), alpha)
            if parameter.requires_grad and parameter not in sharded:
                handles.append(parameter.register_hook(lambda gradient: gradient * (1 - alpha)))
        versions = [parameter._version for parameter in parameters]
        yield
        written = next((n for n, p, v in zip(names, parameters, versions, strict=True) if p._version != v), None)
        for parameter, before in sharded.items():
            _scale_added(parameter.grad, before, 1 - alpha)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, value in zip(parameters, raw, strict=True):
            local(parameter).copy_(value)
        if isinstance(model, nn.Module):
            reshard(model)  # after a forward pass alone, FSDP2 would go on with the interpolated values
    if written is not None:
        raise RuntimeError(
            f"norm parameters must not be written while they are interpolated; {written!r} was. The parameters were "
            "restored. Step the optimizer after the block."
        )


def _part(value: Tensor, parameter: Tensor) -> Tensor:
    """The part of an initial value that this process holds; it may be a snapshot of sharded parameters."""
    return local(value) if is_sharded(value) else part_of(value, parameter)


def _scale_added(gradient: Tensor | None, before: Tensor | None, factor: float | Tensor) -> None:
    if gradient is None:  # FSDP2 keeps it to itself until the last micro-batch
        return
    gradient = local(gradient)
    if before is None:
        gradient.mul_(factor)
    else:
        gradient.sub_(before).mul_(factor).add_(before)


def norm_path(
    model: nn.Module, initial: Mapping[str, Tensor], evaluate: Callable[[nn.Module], Metric], *, points: int = 5
) -> list[tuple[float, Metric]]:
    """Evaluate a network along the line from its norm parameters to their initial values, with all else fixed.

    AWS keeps this path flat: a network that is good at ``alpha = 1`` does not need its trained norms.

    Args:
        model: The trained network; it is unchanged at the end.
        initial: Name -> ``psi_init``, as for :func:`interpolated_norms`.
        evaluate: Returns the metric of a network, or several. With batch norms it should recalibrate their statistics.
        points: Number of values of ``alpha``, evenly from 0 to 1.

    Returns:
        ``(alpha, metric)`` for each point.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, the two ends; received {points}.")
    path = []
    for alpha in (i / (points - 1) for i in range(points)):
        with interpolated_norms(model, initial, alpha):
            path.append((alpha, evaluate(model)))
    return path


def _is_norm(module: nn.Module) -> bool:
    named = "Norm" in type(module).__name__ and not any(module.children()) and not isinstance(module, _OTHERS)
    return isinstance(module, _NORMS) or named


def _is_scale(name: str, parameter: Tensor, owner: nn.Module) -> bool:
    """Whether a parameter outside the norms has one number for each channel and is not the bias of a layer."""
    if isinstance(owner, _OTHERS):
        return False
    alone = all(p is None or p.numel() == max(p.shape, default=1) for p in owner._parameters.values())
    if parameter.ndim > 1:  # ConvNeXt V2 keeps [1, 1, 1, channels]
        return alone and parameter.numel() == max(parameter.shape) and not any(owner.children())
    return alone and not name.endswith("bias")


def _check_initial(named: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> None:
    for name, value in initial.items():
        if name not in named:
            raise ValueError(
                f"initial must name parameters of the model; received {name!r}, which the model lacks. "
                "Take it from norm_parameters(model).snapshot()."
            )
        here, there = local(value), local(named[name])
        if value is named[name] or (here.numel() and here.data_ptr() == there.data_ptr()):
            raise ValueError(
                f"the initial value of {name!r} must be a copy; received the parameter itself, which training changes. "
                "Take a snapshot() of the fresh model."
            )
        if named[name].shape != value.shape:
            raise ValueError(
                f"the initial value of {name!r} must have shape {list(named[name].shape)}; received "
                f"{list(value.shape)}. It is from another model or size."
            )
