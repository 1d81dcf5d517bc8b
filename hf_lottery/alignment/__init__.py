"""Alignment: the permutation that brings one network as close as possible to another."""

from .learned import learned_matching
from .match_report import GroupMatch, MatchReport
from .matching import Match, activation_matching, weight_matching

__all__ = [
    "GroupMatch",
    "Match",
    "MatchReport",
    "activation_matching",
    "learned_matching",
    "weight_matching",
]
