"""Ghosts: tensors without numbers, which stand for weights on the meta device while a pass is traced.

A ghost says that it is on an ordinary device, so a network takes the same path as with loaded weights. What is computed
from a ghost is a ghost again, and costs neither time nor memory. All other tensors, such as token ids, positions and
masks, keep their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .errors import SymmetryError
from .reads import memory

_META = torch.device("meta")
_NEEDS_NUMBERS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class Ghost(Tensor):
    """A tensor with a shape, strides and a device, but without numbers.

    Attributes:
        meta: The same on the meta device. Views share its memory, of which there is none.
        world: What made it.
    """

    meta: Tensor
    world: Ghosts

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, meta: Tensor, world: Ghosts | None = None, **options: Any) -> Ghost:
        if world is None:  # a hook makes a weight of the kind of the one that is there, to put it in its place
            raise _loaded_meanwhile("a tensor made for one of them")
        ghost = Tensor._make_subclass(cls, meta, False, dispatch_device=True, device_for_backend_keys=world.device)
        ghost.meta, ghost.world = meta, world
        return ghost

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The device that a loaded weight would be on."""
        return self.world.device

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        ghost = next(value for value in tree_leaves((args, kwargs)) if isinstance(value, Ghost))
        return ghost.world.run(func, args, kwargs or {})

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch's takes tensor_contents
        return f"Ghost({list(self.shape)}, {self.dtype})"


class Ghosts:
    """Runs operations of which some operands have no numbers.

    Attributes:
        device: The device that ghosts say they are on.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._made: dict[int, tuple[Tensor, Ghost]] = {}  # by the id of the tensor that the ghost stands for
        self._spoiled: dict[int, Tensor] = {}  # memory whose numbers are wrong, because a ghost was written into it

    def of(self, tensor: Tensor) -> Tensor:
        """Return the ghost that stands for a tensor on the meta device; any other tensor stays what it is."""
        if isinstance(tensor, Ghost) or not tensor.is_meta:
            return tensor
        if id(tensor) not in self._made:
            ghost = Ghost(tensor.detach(), self)
            ghost._is_param = isinstance(tensor, nn.Parameter)  # pyright: ignore[reportAttributeAccessIssue]
            self._made[id(tensor)] = tensor, ghost
        return self._made[id(tensor)][1]

    def given(self, value: Any) -> Any:
        """Return an input as the pass takes it: integers on the meta device are ones, as in a mask without padding."""
        if not isinstance(value, Tensor) or not value.is_meta or value.is_floating_point():
            return self.of(value) if isinstance(value, Tensor) else value
        return torch.ones_like(value, device=self.device)

    def has_numbers(self, tensor: Tensor) -> bool:
        """Tell whether the numbers of a tensor are known."""
        return not (isinstance(tensor, Ghost) or tensor.is_meta or memory(tensor) in self._spoiled)

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation, on numbers where all of its operands have them.

        Raises:
            SymmetryError: What the operation does depends on numbers that are not there.
        """
        if func is torch.ops.prim.device.default:
            return self.device
        operands = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if all(map(self.has_numbers, operands)):
            return func(*args, **self._placed(kwargs, self.device))
        if {*_NEEDS_NUMBERS} & {*func.tags} and not _picks_by_position(func, args):
            raise missing_numbers(str(func))
        targets = written(func, args, kwargs)
        if any(isinstance(value, Ghost) or value.is_meta for value in operands):
            out = self._imagined(func, args, kwargs)
            made = []
        else:
            out = func(*args, **self._placed(kwargs, self.device))
            made = tree_leaves(out)
        for tensor in (*made, *targets):
            if isinstance(tensor, Tensor) and not isinstance(tensor, Ghost):
                self._spoiled[memory(tensor)] = tensor
        return out

    def _imagined(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on the meta device."""
        shown: dict[int, tuple[Tensor, Tensor]] = {}

        def bare(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            meta = value.meta if isinstance(value, Ghost) else value.to(_META)
            shown[id(meta)] = value, meta
            return meta

        def dressed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return shown[id(value)][0] if id(value) in shown else Ghost(value, self)

        args, kwargs = tree_map(bare, (args, self._placed(kwargs, _META)))
        try:
            out = func(*args, **kwargs)
        except NotImplementedError as error:
            raise missing_numbers(str(func)) from error
        if torch.Tag.inplace_view in func.tags:  # such as transpose_, which the ghost itself has to show too
            with torch._C._DisableTorchDispatch():
                func(shown[id(args[0])][0], *args[1:], **kwargs)
        return tree_map(dressed, out)

    def _placed(self, kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return keywords that make a tensor on another device than the meta device, or only there."""
        asked = kwargs.get("device")
        wrong = asked is not None and (device == _META or torch.device(asked) == _META)
        return {**kwargs, "device": device} if wrong else kwargs


def missing_numbers(what: str) -> SymmetryError:
    """Return the error that a pass cannot go on without numbers."""
    return SymmetryError(
        f"what a model on the meta device does must not depend on its numbers; received {what}. "
        "Load the weights, or discover on a narrow copy of the same configuration; masks and ids must have numbers."
    )


def written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return the arguments that an operation writes to."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += tree_leaves(value)
    return found


def _picks_by_position(func: Any, args: Any) -> bool:
    """Tell whether an operation is a lookup whose shape does not depend on numbers."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(entry is None or entry.dtype not in (torch.bool, torch.uint8) for entry in args[1])


@contextmanager
def haunted(model: nn.Module, world: Ghosts) -> Iterator[None]:
    """Put ghosts in the place of parameters and buffers on the meta device, and take them out again.

    Raises:
        SymmetryError: Something else was put in their place meanwhile, such as weights that were offloaded.
    """
    places = [
        (path, module, name, tensor)
        for path, module in model.named_modules()
        for held in (module._parameters, module._buffers)
        for name, tensor in held.items()
        if tensor is not None and tensor.is_meta
    ]
    try:
        for _, module, name, tensor in places:
            _put(module, name, world.of(tensor))
        with torch.device(world.device):
            yield
        for path, module, name, tensor in places:
            if getattr(module, name) is not world.of(tensor):
                raise _loaded_meanwhile(f"another tensor in the place of {f'{path}.{name}'.lstrip('.')!r}")
    finally:
        for _, module, name, tensor in places:
            _put(module, name, tensor)


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    held: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
    held[name] = tensor  # not by setattr, which accelerate changes in init_empty_weights
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, weight) for weight in module._flat_weights_names]


def _loaded_meanwhile(what: str) -> SymmetryError:
    return SymmetryError(
        f"weights on the meta device must stay there during a pass; received {what}, as from hooks that load offloaded "
        'weights. Build the same model under torch.device("meta"), and discover on that.'
    )
