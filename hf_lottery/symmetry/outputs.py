"""Outputs: which fields of a model's output are its function, and which only show its inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import SymmetryError

# Fields that show the inside of a network; all other fields are its function.
_INTERNAL = {
    "past_key_values", "hidden_states", "attentions", "cross_attentions", "decoder_hidden_states",
    "decoder_attentions", "encoder_hidden_states", "encoder_attentions", "encoder_last_hidden_state",
    "router_logits", "mems", "reshaped_hidden_states", "cache_params", "encoder_outputs", "encoder_router_logits",
    "decoder_router_logits", "state",
}  # fmt: skip
_HEADLESS = {"last_hidden_state", "pooler_output"}
_NO_OUTPUT = (type, FunctionType, MethodType, ModuleType, nn.Module)


def chosen_outputs(result: Any, outputs: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the tensors and numbers of a model's output that must not change, by field.

    Args:
        result: What the model returned: a tensor or number, a container, a dataclass or any other object; its fields
            may again be any of these.
        outputs: Names of the fields: keys, attributes, or the positions in a tuple as text. None chooses all fields
            except those that show the inside, such as hidden states, attentions and caches.

    Raises:
        SymmetryError: No field holds a tensor or number, the model has no head and ``outputs`` is not given, or
            ``outputs`` names a field that is not there.
    """
    fields = _fields(result)
    found = {name: [*_leaves(value, set())] for name, value in fields.items()}
    found = {name: leaves for name, leaves in found.items() if leaves}
    chosen = [name for name in found if name not in _INTERNAL and not hasattr(fields[name], "get_seq_length")]
    if not found:
        raise SymmetryError(
            "the outputs must be tensors or numbers, also inside containers and objects; received "
            f"{type(result).__name__} that holds none. Let forward return its tensors, such as in a dict."
        )
    if outputs is not None:
        if missing := sorted(set(outputs) - found.keys()):
            raise SymmetryError(f"outputs must name fields of {sorted(found)}; received {missing[0]!r}.")
        chosen = outputs
    elif not isinstance(result, Tensor | list) and type(result) is not tuple:
        if not {*chosen} - _HEADLESS:
            raise SymmetryError(
                f"a model without a head must be told which outputs count; received the fields {sorted(found)}. "
                "Pass outputs=[...], or use a model with a head."
            )
        chosen = [name for name in chosen if name not in _HEADLESS]
    leaves = {}
    for name in chosen:
        tensors = found[name]
        leaves |= {name if len(tensors) == 1 else f"{name}.{i}": tensor for i, tensor in enumerate(tensors)}
    return leaves


def _fields(result: Any) -> dict[str, Any]:
    if isinstance(result, Mapping):
        return {str(key): value for key, value in result.items()}
    if isinstance(result, tuple | list):
        names = getattr(result, "_fields", range(len(result)))
        return {str(name): value for name, value in zip(names, result, strict=True)}
    if _as_tensor(result) is not None or not _attributes(result):
        return {"0": result}
    return _attributes(result)


def _leaves(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in a value, and its numbers as tensors; each object is opened once."""
    tensor = _as_tensor(value)
    if tensor is not None:
        yield tensor
    elif id(value) not in seen and not isinstance(value, str | bytes):
        seen.add(id(value))
        inside = value.values() if isinstance(value, Mapping) else value
        if not isinstance(value, Mapping | Sequence | Set):
            inside = _attributes(value).values()
        for item in inside:
            yield from _leaves(item, seen)


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
