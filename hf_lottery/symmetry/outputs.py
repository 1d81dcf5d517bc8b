"""Outputs: which fields of a model's output are its function, and which only show its inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import SymmetryError

# Names, or last words of names, of the fields that show the inside of a network. All other fields are its function.
_INSIDE = ("hidden_states", "hidden_state", "attentions", "past_key_values", "router_logits", "pooler_output")
_INSIDE_ALONE = ("mems", "cache_params", "encoder_outputs", "state")
_NO_OUTPUT = (type, FunctionType, MethodType, ModuleType, nn.Module)


def chosen_outputs(result: Any, outputs: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the tensors and numbers of a model's output that must not change, by field.

    Args:
        result: What the model returned: a tensor or number, a container, a dataclass or any other object; its fields
            may again be any of these.
        outputs: Names of the fields: keys, attributes, or the positions in a tuple as text. None chooses all fields
            except those that show the inside: hidden states, pooled states, attentions and caches, by name. That holds
            for the fields of inner outputs too, such as those of the two encoders of CLIP.

    Raises:
        SymmetryError: No field holds a tensor or number, the model has no head and ``outputs`` is not given, or
            ``outputs`` names a field that is not there.
    """
    fields = _fields(result)
    found = {name: leaves for name, value in fields.items() if (leaves := [*_leaves(value, set())])}
    if not found:
        raise SymmetryError(
            "the outputs must be tensors or numbers, also inside containers and objects; received "
            f"{type(result).__name__} that holds none. Let forward return its tensors, such as in a dict."
        )
    names = sorted(found)
    if outputs is None:
        found = {name: tensors for name in found if (tensors := [*_leaves({name: fields[name]}, set(), inside=False)])}
        outputs = [*found]
    if not outputs:
        raise SymmetryError(
            f"a model without a head must be told which outputs count; received the fields {names}. "
            "Pass outputs=[...], or use a model with a head."
        )
    if missing := sorted(set(outputs) - found.keys()):
        raise SymmetryError(f"outputs must name fields of {names}; received {missing[0]!r}.")
    leaves = {}
    for name in outputs:
        tensors = found[name]
        leaves |= {name if len(tensors) == 1 else f"{name}.{i}": tensor for i, tensor in enumerate(tensors)}
    return leaves


def _shows_inside(name: str) -> bool:
    return name in _INSIDE_ALONE or any(f"_{name}".endswith(f"_{words}") for words in _INSIDE)


def _fields(result: Any) -> dict[str, Any]:
    if isinstance(result, Mapping):
        return {str(key): value for key, value in result.items()}
    if isinstance(result, tuple | list):
        names = getattr(result, "_fields", range(len(result)))
        return {str(name): value for name, value in zip(names, result, strict=True)}
    if _as_tensor(result) is not None or not _attributes(result):
        return {"0": result}
    return _attributes(result)


def _leaves(value: Any, seen: set[int], *, inside: bool = True) -> Iterator[Tensor]:
    """Yield the tensors in a value, and its numbers as tensors; each object is opened once.

    Args:
        value: The value.
        seen: ``id`` of the objects that were opened.
        inside: Whether the fields that show the inside of a network count.
    """
    tensor = _as_tensor(value)
    if tensor is not None:
        yield tensor
    elif id(value) not in seen and not isinstance(value, str | bytes):
        seen.add(id(value))
        if isinstance(value, Sequence | Set) and not hasattr(value, "_fields"):
            items = list(value)
        else:
            fields = _attributes(value) if not isinstance(value, Mapping | Sequence) else _fields(value)
            items = [item for name, item in fields.items() if inside or not _shows_inside(name)]
        for item in items:
            if inside or not hasattr(item, "get_seq_length"):  # a cache
                yield from _leaves(item, seen, inside=inside)


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    numbers = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc"
    return torch.as_tensor(value) if numbers or isinstance(value, bool | int | float | complex) else None


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds; properties are left out, as computing them runs code."""
    if isinstance(value, _NO_OUTPUT):
        return {}
    slots = [kind.__dict__.get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for group in slots for name in ([group] if isinstance(group, str) else group)]
    return {**{n: getattr(value, n) for n in names if hasattr(value, n)}, **getattr(value, "__dict__", {})}
