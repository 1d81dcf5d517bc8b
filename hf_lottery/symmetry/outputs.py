"""Outputs: which fields of a model's output are its function, and which only show its inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from .errors import SymmetryError

# Fields that show the inside of a network; all other fields are its function.
_INTERNAL = {
    "past_key_values", "hidden_states", "attentions", "cross_attentions", "decoder_hidden_states",
    "decoder_attentions", "encoder_hidden_states", "encoder_attentions", "encoder_last_hidden_state",
    "router_logits", "mems", "reshaped_hidden_states", "cache_params", "encoder_outputs", "encoder_router_logits",
    "decoder_router_logits", "state",
}  # fmt: skip
_HEADLESS = {"last_hidden_state", "pooler_output"}


def chosen_outputs(result: Any, outputs: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the tensors of a model's output that must not change, by field.

    Args:
        result: What the model returned: a mapping, a tuple or a tensor.
        outputs: Names of the fields; the fields of a tuple are named by their numbers as text. None chooses all fields
            except those that show the inside, such as hidden states, attentions and caches.

    Raises:
        SymmetryError: The model has no head and ``outputs`` is not given, or names a field that is not there.
    """
    if isinstance(result, Mapping):
        fields = dict(result)
    else:
        fields = {str(i): value for i, value in enumerate(result if isinstance(result, tuple | list) else [result])}
    chosen = {name: value for name, value in fields.items() if name not in _INTERNAL}
    if outputs is not None:
        if missing := sorted(set(outputs) - fields.keys()):
            raise SymmetryError(f"outputs must name fields of {sorted(fields)}; received {missing[0]!r}.")
        chosen = {name: fields[name] for name in outputs}
    elif isinstance(result, Mapping):
        if not chosen.keys() - _HEADLESS:
            raise SymmetryError(
                f"a model without a head must be told which outputs count; received the fields {sorted(fields)}. "
                "Pass outputs=[...], or use a model with a head."
            )
        chosen = {name: value for name, value in chosen.items() if name not in _HEADLESS}
    leaves = {}
    for name, value in chosen.items():
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        leaves |= {name if len(tensors) == 1 else f"{name}.{i}": tensor for i, tensor in enumerate(tensors)}
    return leaves
