"""Structured: whole units are cut, and what is left is a smaller network."""

from .candidates import unit_candidates
from .semi_structured import PackedWeight, to_semi_structured_
from .shrinking import shrink, shrunk
from .slicing import UnitError
from .small_network import GroupCut, Shrunk, load_shrunk
from .unit_choices import choose_units, shuffle_units
from .unit_mask import UnitMask
from .unit_pruning import prune_units
from .unit_scoring import unit_max, unit_mean, unit_scores, unit_sum
from .wiring import dead_units

__all__ = [
    "GroupCut",
    "PackedWeight",
    "Shrunk",
    "UnitError",
    "UnitMask",
    "choose_units",
    "dead_units",
    "load_shrunk",
    "prune_units",
    "shrink",
    "shrunk",
    "shuffle_units",
    "to_semi_structured_",
    "unit_candidates",
    "unit_max",
    "unit_mean",
    "unit_scores",
    "unit_sum",
]
