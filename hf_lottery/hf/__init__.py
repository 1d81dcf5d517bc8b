"""Hugging Face integration: the only room that imports transformers, accelerate and huggingface_hub.

Import its most used names from ``hf_lottery``. Only the recipes and the metrics need ``datasets`` and ``evaluate``.
"""

from .commands.parser import RecipeParser
from .hub.ticket import Ticket
from .metrics import classification_metrics, load_metric, predicted_classes
from .prunable_weights import Prunable, prunable
from .trainers.arguments import LotteryArguments
from .trainers.callbacks import SparsityCallback
from .trainers.lottery_trainer import LotteryTrainer
from .trainers.sparse_trainer import SparseTrainer
from .trainers.winning_sign_trainer import WinningSignTrainer

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
