"""Connectivity: whether networks lie in one basin, and how much they have in common."""

from .barrier import Barrier, error_barrier, sgd_noise_stability
from .diversity import Diversity, ensemble_diversity
from .hessian import TopEigenvalue, top_hessian_eigenvalue
from .overlap import overlap_by_group, overlap_by_head, overlap_by_parameter
from .plane import Plane, loss_plane
from .repair import recalibrate_batch_norm_, recalibrated, repair_, repaired

__all__ = [
    "Barrier",
    "Diversity",
    "Plane",
    "TopEigenvalue",
    "ensemble_diversity",
    "error_barrier",
    "loss_plane",
    "overlap_by_group",
    "overlap_by_head",
    "overlap_by_parameter",
    "recalibrate_batch_norm_",
    "recalibrated",
    "repair_",
    "repaired",
    "sgd_noise_stability",
    "top_hessian_eigenvalue",
]
