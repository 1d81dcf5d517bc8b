"""Alignment: which permutation brings one network as close as possible to another."""

from .match import Match
from .match_report import GroupMatch, MatchReport
from .matching import activation_matching, residual_streams, weight_matching

__all__ = ["GroupMatch", "Match", "MatchReport", "activation_matching", "residual_streams", "weight_matching"]
