"""Tracing: run one forward pass and label every tensor that it makes with layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..networks.modes import restored_modes
from .ghosts import Ghosts, missing_numbers, written
from .layout import cut, unify
from .nodes import Layout, atom, factors, freeze, frozen, is_frozen
from .origins import Origins
from .reads import Reads, memory

Axes = tuple[Layout, ...]
Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
_KEEPS_POSITIONS: set[str] = set()
_USES_PARTS: set[str] = set()
_IN_PARTS = "written in parts"


def rule(*names: str, positions: bool = False, parts: bool = False) -> Callable[[Rule], Rule]:
    """Register how an ATen operation passes layouts on: ``rule(trace, out, *args, **kwargs)`` -> axes of ``out``.

    Args:
        names: Names of operations without their overload. A name also covers the in-place operation.
        positions: Whether the rule handles integers that are positions along an axis. Any other rule freezes the axis
            of such positions.
        parts: Whether the rule itself records which parts of its operands the operation uses, with ``trace.reads``.
            For any other rule the operands are used as a whole.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
            if positions:
                _KEEPS_POSITIONS.add(name)
            if parts:
                _USES_PARTS.add(name)
        return function

    return register


class Trace(TorchDispatchMode):
    """A torch mode that labels every tensor of a forward pass.

    Args:
        ghosts: What runs the operations if some of the tensors have no numbers.

    Attributes:
        seen: The axes of every tensor of the pass; they show which axes always occur together.
        unknown: Name of each operation without a rule -> how often it ran.
        reached: ``id`` of each tensor that an operation read; of a parameter, that of its first name.
        reads: The parts of tensors that were cut out and used.
        origins: The parameters that tensors show or were copied from, and their axes that were contracted.
        mixed: Axes along which an operation made one number of several, other than by a weight, and what did so.
        operation: Name of the current operation.
        given: Arguments of the current operation by name.
    """

    def __init__(self, ghosts: Ghosts | None = None) -> None:
        super().__init__()
        self.ghosts = ghosts
        self.axes: dict[int, Axes] = {}
        self.keep: list[Tensor] = []  # an id is valid only while its tensor lives
        self.aliases: dict[tuple[Any, ...], Axes] = {}
        self.seen: list[Axes] = []
        self.lookups: list[tuple[Layout, Layout]] = []  # axes of positions, and the axis they index
        self.values: dict[int, Layout] = {}  # integer tensors whose values are positions along an axis
        self.constants: set[int] = set()  # tensors from before the pass that are not parameters
        self.unknown: dict[str, int] = {}
        self.reached: set[int] = set()
        self.reads = Reads()
        self.origins = Origins()
        self.mixed: list[tuple[Layout, str]] = []
        self.sources: dict[tuple[Any, ...], int] = {}
        self.written: dict[int, _Writes] = {}  # by memory
        self.as_of: dict[int, int] = {}  # tensor -> number of writes to its memory when it was labelled
        self.operation = ""
        self._call: tuple[Any, ...] = ()

    def __enter__(self):
        self._reads = _Reads(self)
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._reads.__exit__(*error)

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of the current operation by their names in its schema, including defaults."""
        func, args, kwargs = self._call
        names = [argument.name for argument in func._schema.arguments]
        defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}

    def label(self, tensor: Tensor, axes: Axes) -> None:
        """Set the axes of a tensor."""
        assert len(axes) == tensor.ndim, (axes, tensor.shape)
        self.axes[id(tensor)] = axes
        if (writes := self.written.get(memory(tensor))) is not None:
            self.as_of[id(tensor)] = len(writes.axes)
        self.keep.append(tensor)
        self.seen.append(axes)

    def source(self, tensor: Tensor) -> Axes:
        """Label a parameter, and aliases of it such as ``.data``, with new axes; a tied one has those of the other."""
        axes = self.axes.get(id(tensor)) or self.aliases.get(_place(tensor))
        if axes is not None:
            return axes
        axes = tuple(atom(size) for size in tensor.shape)
        self.label(tensor, axes)
        self.aliases[_place(tensor)] = axes
        self.sources[_place(tensor)] = id(tensor)
        return axes

    def of(self, tensor: Tensor) -> Axes:
        """Return the axes of a tensor; the axes of a constant are frozen."""
        found = self.axes.get(id(tensor))
        if found is None:
            found = self.aliases.get(_place(tensor))
        if found is None:
            found = tuple(frozen(size, "a constant") for size in tensor.shape)
            self.label(tensor, found)
            self.constants.add(id(tensor))
        elif _has_constant(found) and self._is_stale(tensor):
            # The tensor was constant, but something was written through another view of its memory.
            for axes in self.written[memory(tensor)].axes:
                for axis in axes:
                    freeze(axis, _IN_PARTS)
            found = tuple(frozen(size, _IN_PARTS) for size in tensor.shape)
            self.label(tensor, found)
        return found

    def was_reached(self, tensor: Tensor) -> bool:
        """Tell whether an operation read a parameter, under any of its names."""
        return self._source_of(tensor) in self.reached

    def _source_of(self, tensor: Tensor) -> int:
        return self.sources.get(_place(tensor), id(tensor))

    def _is_constant(self, tensor: Tensor) -> bool:
        known = self.axes.get(id(tensor))
        alike = known is not None and all(node.kind == "wild" for axis in known for node in factors(axis))
        return alike or id(tensor) in self.constants

    def _is_stale(self, tensor: Tensor) -> bool:
        writes = self.written.get(memory(tensor))
        return writes is not None and writes.last(tensor) > self.as_of.get(id(tensor), 0)

    def freeze(self, tensor: Tensor, why: str) -> None:
        """Freeze every axis of a tensor."""
        for axis in self.of(tensor):
            freeze(axis, why)

    def lose_positions(self, tensor: Tensor, why: str) -> None:
        """Freeze the axis that a tensor's values index, because they are used in a way that has no rule."""
        if id(tensor) in self.values:
            freeze(self.values.pop(id(tensor)), why)

    def mix(self, *axes: Layout, by: str = "") -> None:
        """Record that the units of some axes are combined with each other, by the current operation if not named."""
        self.mixed += [(axis, by or f"the operation {self.operation}") for axis in axes]

    def virtual(self, axes: Axes) -> None:
        """Record axes that must be consistent with each other, as if one tensor had them."""
        self.seen.append(axes)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args)
        out = self.ghosts.run(func, args, kwargs) if self.ghosts else func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.reached.add(self._source_of(value))
        self.operation, self._call = name, (func, args, kwargs)
        self._apply(func, name, out, args, kwargs)
        self.origins.follow(func, tree_leaves(out), args, self._is_constant)
        return out

    def _apply(self, func, name: str, out: Any, args, kwargs) -> None:
        known = _rule_name(func, name)
        try:
            axes = RULES[known](self, out, *args, **kwargs) if known else NotImplemented
        except Exception as error:  # an unforeseen case; axes that the rule already tied are safe
            axes, name = NotImplemented, f"{name} ({type(error).__name__})"
        if axes is NotImplemented:
            self._use(func, out, args, kwargs)
            self.refuse(name, out, args, kwargs)
            return
        if known not in _USES_PARTS:
            self._use(func, out, args, kwargs)
        if known not in _KEEPS_POSITIONS:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self.lose_positions(value, f"positions used by the operation {name}")
        if axes is None:
            return
        for tensor, its_axes in [(out, axes)] if isinstance(out, Tensor) else zip(out, axes, strict=True):
            if isinstance(tensor, Tensor) and its_axes is not None:
                if any(tensor is target for target in written(func, args, kwargs)):
                    self.write(tensor, its_axes)
                self.label(tensor, its_axes)

    def _use(self, func, out: Any, args, kwargs) -> None:
        operands, results = ([v for v in tree_leaves(x) if isinstance(v, Tensor)] for x in ((args, kwargs), out))
        self.reads.use_by(operands, results, written(func, args, kwargs))

    def write(self, tensor: Tensor, axes: Axes) -> None:
        """Record a write to a tensor; constant views of the same memory are no longer constant."""
        self.written.setdefault(memory(tensor), _Writes()).add(tensor, axes)
        base = tensor._base
        if base is not None and id(base) in self.axes and _has_constant(self.axes[id(base)]):
            self.label(base, _filled(self.axes[id(base)], base, tensor, axes))

    def refuse(self, name: str, out: Any, args, kwargs) -> None:
        """Freeze everything that an operation without a rule touches, which is always safe."""
        results = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        if results and not any(tensor.numel() for tensor in results):
            for tensor in results:  # for example, an expert without tokens has empty results
                self.label(tensor, tuple(frozen(size, "empty") for size in tensor.shape))
            return
        why = f"no rule for the operation {name}"
        self.unknown[name] = self.unknown.get(name, 0) + 1
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.freeze(value, why)
                self.lose_positions(value, why)
        targets = [value for value in written(self._call[0], args, kwargs) if isinstance(value, Tensor)]
        for value in (*results, *targets):
            axes = tuple(frozen(size, why) for size in value.shape)
            if any(value is target for target in targets):
                self.write(value, axes)
            self.label(value, axes)


class _Writes:
    """The writes into one piece of memory: which axes were written, and the time of the last write per element."""

    def __init__(self) -> None:
        self.axes: list[Axes] = []
        self.times: dict[torch.dtype, Tensor] = {}

    def add(self, view: Tensor, axes: Axes) -> None:
        """Record a write to a view."""
        self.axes.append(axes)
        self._times(view).fill_(len(self.axes))

    def last(self, view: Tensor) -> int:
        """Return the number of the last write that a view shows, or of the last of all if the dtypes differ."""
        if not view.numel():
            return 0
        return int(self._times(view).max()) if {*self.times} <= {view.dtype} else len(self.axes)

    def _times(self, view: Tensor) -> Tensor:
        if view.dtype not in self.times:
            size = view.untyped_storage().nbytes() // view.element_size()
            self.times[view.dtype] = torch.zeros(size, dtype=torch.int32)
        return self.times[view.dtype].as_strided(view.shape, view.stride(), view.storage_offset())


class _Reads(TorchFunctionMode):
    """A torch mode that sees values leave torch, which the dispatcher does not see."""

    _LEAVING = (Tensor.tolist, Tensor.numpy, Tensor.__array__)

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self._LEAVING:
            if self.trace.ghosts and not self.trace.ghosts.has_numbers(args[0]):
                raise missing_numbers(f"Tensor.{func.__name__}")
            self.trace.freeze(args[0], "read as numbers")
            self.trace.lose_positions(args[0], "read as numbers")
            self.trace.reads.use(args[0])
        if func is torch.nn.functional.one_hot and len(args) == 2 and args[1] > 0 and not kwargs:
            # This gives the result of torch without its check, which reads the smallest and largest position.
            zeros = torch.zeros(*args[0].shape, args[1], dtype=args[0].dtype, device=args[0].device)
            return zeros.scatter(-1, args[0].unsqueeze(-1), 1)
        return func(*args, **(kwargs or {}))


def _rule_name(func, name: str) -> str | None:
    if name in RULES:
        return name
    if torch.Tag.pointwise in func.tags:
        return "pointwise"
    in_place = name[:-1] if name.endswith("_") and not name.startswith("_") else ""
    return in_place if in_place in RULES else None


def _has_constant(axes: Axes) -> bool:
    return any(node.kind == "wild" for axis in axes for node in factors(axis))


def _filled(old: Axes, base: Tensor, view: Tensor, axes: Axes) -> Axes:
    """Return the axes of a partly constant tensor after a view of it was written; axes are matched by strides."""
    shown = [i for i in range(view.ndim) if view.shape[i] > 1]
    strides = {view.stride(i): i for i in shown}
    own = [step for step, size in zip(base.stride(), base.shape, strict=True) if size > 1]
    matched, plain = [], len(strides) == len(shown) and len(set(own)) == len(own)
    for axis, step, size in zip(old, base.stride(), base.shape, strict=True):
        i = strides.pop(step, None) if size > 1 else None
        if i is None:
            matched.append(_kept(axis, size))
        else:
            start = int(view.storage_offset() - base.storage_offset()) // step % size
            plain = plain and start + view.shape[i] <= size
            matched.append(_block_filled(axis, size, start, axes[i], view.shape[i]) if plain else axis)
    if plain and not strides:
        return tuple(matched)
    for axis in (*old, *axes):
        freeze(axis, _IN_PARTS)
    return tuple(frozen(size, _IN_PARTS) for size in base.shape)


def _kept(axis: Layout, size: int) -> Layout:
    return frozen(size, _IN_PARTS) if any(node.kind == "wild" for node in factors(axis)) else axis


def _block_filled(axis: Layout, size: int, start: int, block: Layout, length: int) -> Layout:
    """Return an axis after one block of it was written."""
    if length == size:
        return unify(axis, block)
    if not any(node.kind == "wild" for node in factors(axis)):
        return axis  # the view was cut from this axis and is tied to it
    whole = atom(size)
    found = None if all(map(is_frozen, factors(block))) else cut(whole, start, start + length)
    if found is None:
        freeze(block, _IN_PARTS)
        return frozen(size, _IN_PARTS)
    unify(found[0], block)
    return whole


def _place(tensor: Tensor) -> tuple[Any, ...]:
    try:
        if not tensor.numel():
            return (id(tensor),)
        at = tensor.untyped_storage().data_ptr() and tensor.data_ptr()
        if not at:  # there are no numbers in memory
            at = memory(tensor), int(tensor.storage_offset())
        return (at, tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
    except RuntimeError:
        return (id(tensor),)


# These kernels make a recurrent layer one operation. (Torch's `flags` would warn about settings that stay unchanged.)
_FUSED_RECURRENCE = (
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
)


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Keep a model in evaluation mode, without gradients and without kernels that fuse several operations."""
    with ExitStack() as stack:
        stack.enter_context(restored_modes(model))
        # Passing through train mode makes modules recompute what they cached in evaluation mode.
        model.train().eval()
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        # Run all experts at once, because experts that run one at a time share no axis.
        experts = getattr(model, "get_experts_implementation", lambda: None)()
        choose: Callable[[Any], None] | None = getattr(model, "set_experts_implementation", None)
        if experts is not None and choose is not None:
            stack.callback(choose, experts)
            choose("batched_mm")
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            for get, turn in _FUSED_RECURRENCE:
                stack.callback(turn, get())
                turn(False)
        stack.enter_context(torch.no_grad())
        yield


def call(model: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...]) -> Any:
    """Run the model on one call's inputs and return its output."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
