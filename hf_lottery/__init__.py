"""hf_lottery: find, share, align and transfer lottery tickets for PyTorch and Hugging Face models.

::

    networks   any torch module: plain names, modes, channels, shards, processes
    storage    bytes: bits, atomic writes, checksums; saved in a folder or on the Hub
    masks      Mask, MaskSeries
    pruning    scores --> prune --> Mask; scopes, schedules
    training   keep_sparse, rewind, find_ticket = (train, score, prune, rewind) level after level
    symmetry   discover --> PermutationSpec --> Permutation
    alignment  weight_matching, activation_matching: which permutation brings two networks together
    signs      SignedMask, norm parameters
    connectivity   error_barrier, overlap, loss_plane: are two networks in one basin
    structured prune_units --> UnitMask --> shrink: whole units go, and a smaller network is left
    report     tables, pictures, one page
    hf         everything of transformers: prunable, Ticket, the Trainers, the Hub, the command line

A room imports only rooms above it. The names here are those of a first page; the others are in the rooms, such as
``hf_lottery.report.plot_barriers``. A name imports its module when it is first used: those of ``hf_lottery.hf`` load
the Hugging Face libraries, the rest needs torch, numpy, scipy, safetensors and zstandard.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_names
from .version import __version__

if TYPE_CHECKING:
    from . import alignment as alignment
    from . import connectivity as connectivity
    from . import hf as hf
    from . import masks as masks
    from . import networks as networks
    from . import pruning as pruning
    from . import report as report
    from . import signs as signs
    from . import storage as storage
    from . import structured as structured
    from . import symmetry as symmetry
    from . import training as training
    from .alignment.matching import Match, activation_matching, weight_matching
    from .connectivity.barrier import error_barrier
    from .connectivity.repair import recalibrated
    from .hf.adapter import merge_adapter
    from .hf.hub.reference import RewindMismatchError
    from .hf.hub.ticket import Ticket
    from .hf.prunable_weights import prunable
    from .hf.trainers.arguments import LotteryArguments
    from .hf.trainers.callbacks import SparsityCallback
    from .hf.trainers.lottery_trainer import LotteryTrainer
    from .hf.trainers.sparse_trainer import SparseTrainer
    from .hf.trainers.winning_sign_trainer import WinningSignTrainer
    from .masks.mask import Mask, MaskMismatchError
    from .masks.mask_series import MaskSeries
    from .pruning.evidence import gather_evidence
    from .pruning.mask_from_scores import prune
    from .pruning.schedules import cubic, geometric, one_shot
    from .pruning.scopes import erk, global_ranking, n_of_m, uniform
    from .pruning.scores import magnitude, movement, needs, random_score, saliency, score_weights, wanda
    from .report.page import write_report
    from .signs.norms import interpolated_norms, norm_parameters
    from .signs.signed_mask import SignedMask
    from .storage.encoding import MaskFileError
    from .structured.shrinking import shrink
    from .structured.unit_mask import UnitMask
    from .structured.unit_pruning import prune_units
    from .symmetry.discovery import discover
    from .symmetry.errors import SpecMismatchError, SymmetryError
    from .symmetry.permutation import Permutation, permute_
    from .symmetry.spec import PermutationSpec
    from .training import rewind
    from .training.search import find_ticket
    from .training.snapshot import Snapshot
    from .training.sparsity import SparsityLeakError, keep_sparse
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "alignment.matching": ["Match", "activation_matching", "weight_matching"],
            "connectivity.barrier": ["error_barrier"],
            "connectivity.repair": ["recalibrated"],
            "hf.adapter": ["merge_adapter"],
            "hf.hub.reference": ["RewindMismatchError"],
            "hf.hub.ticket": ["Ticket"],
            "hf.prunable_weights": ["prunable"],
            "hf.trainers.arguments": ["LotteryArguments"],
            "hf.trainers.callbacks": ["SparsityCallback"],
            "hf.trainers.lottery_trainer": ["LotteryTrainer"],
            "hf.trainers.sparse_trainer": ["SparseTrainer"],
            "hf.trainers.winning_sign_trainer": ["WinningSignTrainer"],
            "masks.mask": ["Mask", "MaskMismatchError"],
            "masks.mask_series": ["MaskSeries"],
            "pruning.evidence": ["gather_evidence"],
            "pruning.mask_from_scores": ["prune"],
            "pruning.schedules": ["cubic", "geometric", "one_shot"],
            "pruning.scopes": ["erk", "global_ranking", "n_of_m", "uniform"],
            "pruning.scores": ["magnitude", "movement", "needs", "random_score", "saliency", "score_weights", "wanda"],
            "report.page": ["write_report"],
            "signs.norms": ["interpolated_norms", "norm_parameters"],
            "signs.signed_mask": ["SignedMask"],
            "storage.encoding": ["MaskFileError"],
            "structured.shrinking": ["shrink"],
            "structured.unit_mask": ["UnitMask"],
            "structured.unit_pruning": ["prune_units"],
            "symmetry.discovery": ["discover"],
            "symmetry.errors": ["SpecMismatchError", "SymmetryError"],
            "symmetry.permutation": ["Permutation", "permute_"],
            "symmetry.spec": ["PermutationSpec"],
            "training": ["rewind"],
            "training.search": ["find_ticket"],
            "training.snapshot": ["Snapshot"],
            "training.sparsity": ["SparsityLeakError", "keep_sparse"],
        },
        modules=[
            "alignment", "connectivity", "hf", "masks", "networks", "pruning", "report", "signs", "storage",
            "structured", "symmetry", "training",
        ],
    )  # fmt: skip

__all__ = [
    "LotteryArguments",
    "LotteryTrainer",
    "Mask",
    "MaskFileError",
    "MaskMismatchError",
    "MaskSeries",
    "Match",
    "Permutation",
    "PermutationSpec",
    "RewindMismatchError",
    "SignedMask",
    "Snapshot",
    "SparseTrainer",
    "SparsityCallback",
    "SparsityLeakError",
    "SpecMismatchError",
    "SymmetryError",
    "Ticket",
    "UnitMask",
    "WinningSignTrainer",
    "__version__",
    "activation_matching",
    "cubic",
    "discover",
    "erk",
    "error_barrier",
    "find_ticket",
    "gather_evidence",
    "geometric",
    "global_ranking",
    "interpolated_norms",
    "keep_sparse",
    "magnitude",
    "merge_adapter",
    "movement",
    "n_of_m",
    "needs",
    "norm_parameters",
    "one_shot",
    "permute_",
    "prunable",
    "prune",
    "prune_units",
    "random_score",
    "recalibrated",
    "rewind",
    "saliency",
    "score_weights",
    "shrink",
    "uniform",
    "wanda",
    "weight_matching",
    "write_report",
]
