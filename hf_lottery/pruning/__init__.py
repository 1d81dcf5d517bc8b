"""Pruning: score the weights of a network and choose which of them to keep."""

from .evidence import Evidence, gather_evidence
from .mask_from_scores import prune
from .schedules import cubic, geometric, one_shot
from .scopes import PruneRequest, erk, global_ranking, n_of_m, uniform
from .scores import magnitude, movement, needs, random_score, saliency, score_weights, wanda

__all__ = [
    "Evidence",
    "PruneRequest",
    "cubic",
    "erk",
    "gather_evidence",
    "geometric",
    "global_ranking",
    "magnitude",
    "movement",
    "n_of_m",
    "needs",
    "one_shot",
    "prune",
    "random_score",
    "saliency",
    "score_weights",
    "uniform",
    "wanda",
]
