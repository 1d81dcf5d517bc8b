"""Tracing: run one forward pass and label every tensor it makes with layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .layout import Layout, atom, freeze, frozen

Axes = tuple[Layout, ...]
Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register how an ATen operation passes layouts on: ``rule(trace, out, *args, **kwargs)`` -> axes of ``out``."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


class Trace(TorchDispatchMode):
    """Labels every tensor of a forward pass.

    Attributes:
        seen: The axes of every tensor there was, for finding out which axes always go together.
        unknown: Name of each operation without a rule -> how often it ran.
        reached: ``id`` of each tensor that an operation read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.axes: dict[int, Axes] = {}
        self.keep: list[Tensor] = []  # an id is only good as long as its tensor lives
        self.aliases: dict[tuple[Any, ...], Axes] = {}
        self.seen: list[Axes] = []
        self.lookups: list[tuple[Layout, Layout]] = []  # positions that were looked up in an axis: they stand for it
        self.values: dict[int, Layout] = {}  # integer tensors whose values are positions along an axis
        self.constants: set[int] = set()  # tensors that were there before the pass and are no parameters
        self.unknown: dict[str, int] = {}
        self.reached: set[int] = set()
        self.sources: dict[tuple[Any, ...], int] = {}

    def label(self, tensor: Tensor, axes: Axes) -> None:
        """State what a tensor's axes are."""
        assert len(axes) == tensor.ndim, (axes, tensor.shape)
        self.axes[id(tensor)] = axes
        self.keep.append(tensor)
        self.seen.append(axes)

    def source(self, tensor: Tensor, axes: Axes | None = None) -> Axes:
        """Label a parameter, which may also be read through an alias such as ``.data``."""
        axes = axes or tuple(atom(size) for size in tensor.shape)
        self.label(tensor, axes)
        self.aliases[_place(tensor)] = axes
        self.sources[_place(tensor)] = id(tensor)
        return axes

    def of(self, tensor: Tensor) -> Axes:
        """The axes of a tensor; a constant's are frozen."""
        found = self.axes.get(id(tensor)) or self.aliases.get(_place(tensor))
        if found is None:
            found = tuple(frozen(size, "a constant") for size in tensor.shape)
            self.label(tensor, found)
            self.constants.add(id(tensor))
        return found

    def freeze(self, tensor: Tensor, why: str) -> None:
        """Freeze every axis of a tensor."""
        for axis in self.of(tensor):
            freeze(axis, why)

    def virtual(self, axes: Axes) -> None:
        """Note axes that have to be consistent among themselves as if a tensor had them."""
        self.seen.append(axes)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.reached.add(self.sources.get(_place(value), id(value)))
        self._apply(func, name, out, args, kwargs)
        return out

    def _apply(self, func, name: str, out: Any, args, kwargs) -> None:
        function = RULES.get(name)
        if function is None and torch.Tag.pointwise in func.tags:
            function = RULES["pointwise"]
        if function is None and name.endswith("_") and not name.startswith("_"):
            function = RULES.get(name[:-1])
        axes = function(self, out, *args, **kwargs) if function else NotImplemented
        if axes is NotImplemented:
            self.refuse(name, out, args, kwargs)
        elif isinstance(out, Tensor):
            if axes is not None:
                self.label(out, axes)
        elif axes is not None:
            for tensor, its_axes in zip(out, axes, strict=True):
                if isinstance(tensor, Tensor) and its_axes is not None:
                    self.label(tensor, its_axes)

    def refuse(self, name: str, out: Any, args, kwargs) -> None:
        """Freeze all that an operation without a rule touches: always right."""
        why = f"no rule for the operation {name}"
        self.unknown[name] = self.unknown.get(name, 0) + 1
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.freeze(value, why)
                if id(value) in self.values:
                    freeze(self.values[id(value)], why)
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.label(value, tuple(frozen(size, why) for size in value.shape))


def _place(tensor: Tensor) -> tuple[Any, ...]:
    try:
        return (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype) if tensor.numel() else ()
    except RuntimeError:
        return (id(tensor),)


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and without kernels that hide several operations in one."""
    fast = torch.backends.mha.get_fastpath_enabled()
    training = {module: module.training for module in model.modules()}
    experts = getattr(model, "get_experts_implementation", lambda: None)()
    torch.backends.mha.set_fastpath_enabled(False)
    # Through train mode, so that what a module cached in evaluation mode is made again.
    model.train().eval()
    try:
        if experts is not None and hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("batched_mm")
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if experts is not None and hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation(experts)
        for module, mode in training.items():
            module.training = mode


def call(model: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...]) -> Any:
    """The model's output for one call's inputs."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
