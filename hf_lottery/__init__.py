"""hf_lottery: find, share, align and transfer lottery tickets for PyTorch and Hugging Face models.

::

    model + batches                                (hf_lottery.hf, recipes)
        |   tensors and callables only
        v
    scores --> prune --> Mask --> keep_sparse --> report
                  ^        |
      schedule ---+        +--> rewind
    find_ticket = (train, score, prune, rewind), level after level

The core needs torch, numpy, scipy, safetensors and zstandard. The names of ``hf_lottery.hf`` load the Hugging Face
libraries when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .alignment.matching import activation_matching, weight_matching
from .connectivity.barrier import Barrier, error_barrier, sgd_noise_stability
from .connectivity.diversity import Diversity, ensemble_diversity
from .connectivity.hessian import TopEigenvalue, top_hessian_eigenvalue
from .connectivity.overlap import overlap_by_group, overlap_by_head, overlap_by_parameter
from .connectivity.plane import Plane, loss_plane
from .connectivity.repair import recalibrate_batch_norm_, recalibrated, repair_, repaired
from .masks.mask import Mask, MaskMismatchError, Overlap
from .masks.mask_series import MaskSeries
from .pruning.mask_from_scores import prune
from .pruning.schedules import cubic, geometric, one_shot
from .pruning.scopes import PruneRequest, erk, global_ranking, n_of_m, uniform
from .pruning.scores import Evidence, gather_evidence, magnitude, movement, random_score, saliency, score_weights, wanda
from .report import (
    DeadUnits,
    Picture,
    Section,
    Table,
    dead_units,
    level_table,
    markdown_table,
    plot_against_density,
    plot_barriers,
    plot_layers,
    plot_match,
    plot_norm_path,
    plot_overlap,
    plot_plane,
    plot_sign_flips,
    write_report,
)
from .signs.norm_folding import fold_norms_
from .signs.norms import NormParameters, interpolated_norms, norm_parameters, norm_path
from .signs.signed_mask import ZEROS, SignAgreement, SignedMask, Transfer
from .storage.encoding import MaskFileError
from .symmetry.discovery import discover
from .symmetry.errors import SpecMismatchError, SymmetryError, SymmetryVerificationError
from .symmetry.groups import Axis, Block, Group
from .symmetry.permutation import Permutation, permute_
from .symmetry.spec import PermutationSpec
from .symmetry.verification import VerifyReport
from .training import rewind
from .training.rewind import RewindPoint, parse_rewind
from .training.search import Level, Start, find_ticket
from .training.snapshot import Snapshot, save_snapshot
from .training.sparsity import SparseHandle, SparsityLeakError, keep_sparse
from .version import __version__

if TYPE_CHECKING:
    from .hf.adapter import merge_adapter
    from .hf.commands.parser import RecipeParser
    from .hf.hub.reference import Reference, RewindMismatchError
    from .hf.hub.ticket import Ticket
    from .hf.metrics import classification_metrics, load_metric, predicted_classes
    from .hf.plan import SearchPlan, plan_search
    from .hf.prunable_weights import Prunable, prunable
    from .hf.trainers.arguments import LotteryArguments
    from .hf.trainers.callbacks import SnapshotCallback, SparsityCallback
    from .hf.trainers.lottery_trainer import LotteryTrainer
    from .hf.trainers.sparse_trainer import SparseTrainer
    from .hf.trainers.winning_sign_trainer import WinningSignTrainer

_LAZY = {
    "LotteryArguments": "trainers.arguments",
    "LotteryTrainer": "trainers.lottery_trainer",
    "Prunable": "prunable_weights",
    "RecipeParser": "commands.parser",
    "SnapshotCallback": "trainers.callbacks",
    "SparseTrainer": "trainers.sparse_trainer",
    "SparsityCallback": "trainers.callbacks",
    "Reference": "hub.reference",
    "RewindMismatchError": "hub.reference",
    "SearchPlan": "plan",
    "Ticket": "hub.ticket",
    "WinningSignTrainer": "trainers.winning_sign_trainer",
    "classification_metrics": "metrics",
    "load_metric": "metrics",
    "merge_adapter": "adapter",
    "plan_search": "plan",
    "predicted_classes": "metrics",
    "prunable": "prunable_weights",
}


__all__ = [
    "ZEROS",
    "Axis",
    "Barrier",
    "Block",
    "DeadUnits",
    "Diversity",
    "Evidence",
    "Group",
    "Level",
    "LotteryArguments",
    "LotteryTrainer",
    "Mask",
    "MaskFileError",
    "MaskMismatchError",
    "MaskSeries",
    "NormParameters",
    "Overlap",
    "Permutation",
    "PermutationSpec",
    "Picture",
    "Plane",
    "Prunable",
    "PruneRequest",
    "RecipeParser",
    "Reference",
    "RewindPoint",
    "RewindMismatchError",
    "SearchPlan",
    "Section",
    "SignAgreement",
    "SignedMask",
    "Snapshot",
    "SnapshotCallback",
    "SparseHandle",
    "SparseTrainer",
    "SparsityCallback",
    "SparsityLeakError",
    "SpecMismatchError",
    "Start",
    "SymmetryError",
    "SymmetryVerificationError",
    "Table",
    "Ticket",
    "TopEigenvalue",
    "Transfer",
    "VerifyReport",
    "WinningSignTrainer",
    "__version__",
    "activation_matching",
    "classification_metrics",
    "cubic",
    "dead_units",
    "discover",
    "ensemble_diversity",
    "erk",
    "error_barrier",
    "find_ticket",
    "fold_norms_",
    "gather_evidence",
    "geometric",
    "global_ranking",
    "interpolated_norms",
    "keep_sparse",
    "level_table",
    "load_metric",
    "loss_plane",
    "magnitude",
    "markdown_table",
    "merge_adapter",
    "movement",
    "n_of_m",
    "norm_parameters",
    "norm_path",
    "one_shot",
    "overlap_by_group",
    "overlap_by_head",
    "overlap_by_parameter",
    "parse_rewind",
    "permute_",
    "plan_search",
    "plot_against_density",
    "plot_barriers",
    "plot_layers",
    "plot_match",
    "plot_norm_path",
    "plot_overlap",
    "plot_plane",
    "plot_sign_flips",
    "predicted_classes",
    "prunable",
    "prune",
    "random_score",
    "recalibrate_batch_norm_",
    "recalibrated",
    "repair_",
    "repaired",
    "rewind",
    "saliency",
    "save_snapshot",
    "score_weights",
    "sgd_noise_stability",
    "top_hessian_eigenvalue",
    "uniform",
    "wanda",
    "weight_matching",
    "write_report",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".hf.{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
