"""Copies: a model with other tensors in some places, and tensors put into a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..networks.names import named_tensors, plain_name


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by plain name, a shared one under each of its names."""
    modules = model.named_modules(remove_duplicate=False)
    return {plain_name(f"{name}.").removesuffix("."): module for name, module in modules}


def copied(model: nn.Module, tensors: Mapping[str, Tensor], *, share: bool = False) -> nn.Module:
    """Copy a model, with other tensors in some places; what was tied stays tied.

    Args:
        model: The model; not changed. It has no wrappers.
        tensors: First name of a parameter or buffer -> what the copy has instead.
        share: Whether the other parameters are the model's own, and not copies.
    """
    memo: dict[int, Any] = {}
    for name, old in named_tensors(model, numbers=False).items():
        if name in tensors:
            memo[id(old)] = _like(old, tensors[name])
        elif share and isinstance(old, nn.Parameter):
            memo.setdefault(id(old), old)
    # torch copies no tensor with a history, such as a weight that a norm of weights has computed.
    computed = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and v.grad_fn is not None]
    memo |= {id(value): value.detach().clone() for value in computed}
    return copy.deepcopy(model, memo)


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


class Places:
    """Where the tensors of a model are held, so that others can be put there.

    Args:
        model: The model.

    Attributes:
        owners: First name of a tensor -> names of the modules that hold it.
    """

    def __init__(self, model: nn.Module):
        first: dict[int, str] = {id(t): name for name, t in reversed(named_tensors(model, numbers=False).items())}
        self._held: dict[str, list[tuple[nn.Module, str]]] = {}
        self.owners: dict[str, list[str]] = {}
        for name, module in named_modules(model).items():
            for own, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self._held.setdefault(first[id(tensor)], []).append((module, own))
                    self.owners.setdefault(first[id(tensor)], []).append(name)

    def get(self, name: str) -> Tensor:
        """Return a tensor by its first name."""
        module, own = self._held[name][0]
        return getattr(module, own)

    def put(self, name: str, tensor: Tensor) -> None:
        """Put a tensor where another one is held, wherever that is.

        Args:
            name: The first name of the tensor that is there.
            tensor: The tensor; it becomes a parameter if the other one is.
        """
        new = _like(self.get(name), tensor)
        for module, own in self._held[name]:
            setattr(module, own, new)
