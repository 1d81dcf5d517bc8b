"""hf_lottery: find, share, align and transfer lottery tickets for PyTorch and Hugging Face models.

::

    model + batches                                (hf_lottery.hf, recipes)
        |   tensors and callables only
        v
    scores --> prune --> Mask --> keep_sparse --> report
                  ^        |
      schedule ---+        +--> rewind
    find_ticket = (train, score, prune, rewind), level after level

The core needs torch, numpy and safetensors. The names of ``hf_lottery.hf`` load the Hugging Face libraries when
they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import rewind
from .imp import Level, Start, find_ticket
from .mask import Mask, MaskMismatchError, Overlap
from .mask_file import MaskFileError
from .prune import prune
from .report import level_table, markdown_table, plot_against_density
from .rewind import Rewind, Snapshot, parse_rewind
from .schedule import cubic, geometric, one_shot
from .scope import PruneRequest, erk, global_, n_of_m, uniform
from .scores import Evidence, gather_evidence, magnitude, movement, random, saliency, score_weights, wanda
from .sparse import SparseHandle, SparsityLeakError, keep_sparse
from .version import __version__

if TYPE_CHECKING:
    from .hf.arguments import LotteryArguments
    from .hf.callback import SparsityCallback
    from .hf.metrics import classification_metrics, load_metric, predicted_classes
    from .hf.parser import RecipeParser
    from .hf.prunable import Prunable, prunable
    from .hf.ticket import Ticket
    from .hf.trainer import LotteryTrainer, SparseTrainer

_LAZY = {
    "LotteryArguments": "arguments",
    "LotteryTrainer": "trainer",
    "Prunable": "prunable",
    "RecipeParser": "parser",
    "SparseTrainer": "trainer",
    "SparsityCallback": "callback",
    "Ticket": "ticket",
    "classification_metrics": "metrics",
    "load_metric": "metrics",
    "predicted_classes": "metrics",
    "prunable": "prunable",
}

__all__ = [
    "Evidence",
    "Level",
    "LotteryArguments",
    "LotteryTrainer",
    "Mask",
    "MaskFileError",
    "MaskMismatchError",
    "Overlap",
    "Prunable",
    "PruneRequest",
    "RecipeParser",
    "Rewind",
    "Snapshot",
    "SparseHandle",
    "SparseTrainer",
    "SparsityCallback",
    "SparsityLeakError",
    "Start",
    "Ticket",
    "__version__",
    "classification_metrics",
    "cubic",
    "erk",
    "find_ticket",
    "gather_evidence",
    "geometric",
    "global_",
    "keep_sparse",
    "level_table",
    "load_metric",
    "magnitude",
    "markdown_table",
    "movement",
    "n_of_m",
    "one_shot",
    "parse_rewind",
    "plot_against_density",
    "predicted_classes",
    "prunable",
    "prune",
    "random",
    "rewind",
    "saliency",
    "score_weights",
    "uniform",
    "wanda",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".hf.{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
