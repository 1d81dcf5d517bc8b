"""Rules: how each ATen operation passes layouts on. An operation without a rule freezes its tensors."""

from . import contractions, indexing, rearrangements, reductions, views  # noqa: F401  # importing them registers the rules
from .elementwise import pointwise

__all__ = ["pointwise"]
