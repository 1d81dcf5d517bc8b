"""Networks: what holds for any torch module, whatever its task."""

from .names import named_weights, unwrap
from .selection import select_names

__all__ = [
    "named_weights",
    "select_names",
    "unwrap",
]
