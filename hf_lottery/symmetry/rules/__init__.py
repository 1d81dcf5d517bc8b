"""Rules: how each ATen operation passes layouts on. What has no rule here freezes what it touches."""

from . import contractions, indexing, rearrangements, reductions, views  # noqa: F401  # importing them registers the rules
from .elementwise import pointwise

__all__ = ["pointwise"]
