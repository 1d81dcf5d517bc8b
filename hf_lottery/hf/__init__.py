"""The Hugging Face side of hf_lottery: the only package that imports transformers, accelerate and huggingface_hub.

Its names are meant to be imported from ``hf_lottery`` itself. ``datasets`` and ``evaluate`` are needed by the recipes
and the metrics alone.
"""

from .arguments import LotteryArguments
from .callback import SparsityCallback
from .lottery_trainer import LotteryTrainer
from .metrics import classification_metrics, load_metric, predicted_classes
from .parser import RecipeParser
from .prunable import Prunable, prunable
from .sparse_trainer import SparseTrainer
from .ticket import Ticket
from .winning_sign_trainer import WinningSignTrainer

__all__ = [
    "LotteryArguments",
    "LotteryTrainer",
    "Prunable",
    "RecipeParser",
    "SparseTrainer",
    "SparsityCallback",
    "Ticket",
    "WinningSignTrainer",
    "classification_metrics",
    "load_metric",
    "predicted_classes",
    "prunable",
]
