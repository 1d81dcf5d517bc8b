"""Structured: whole units are cut, and what is left is a smaller network."""

from .semi_structured import PackedWeight, to_semi_structured_

__all__ = [
    "PackedWeight",
    "to_semi_structured_",
]
