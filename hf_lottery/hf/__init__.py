"""Hugging Face integration: the only room that imports transformers, accelerate and huggingface_hub.

Import its most used names from ``hf_lottery``. Only the recipes and the metrics need ``datasets`` and ``evaluate``.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .adapter import merge_adapter
    from .commands.parser import RecipeParser
    from .hub.difference import Difference
    from .hub.sparse_model import SparseModel
    from .hub.ticket import Ticket
    from .metrics import classification_metrics, load_metric, predicted_classes
    from .prunable_weights import Prunable, prunable
    from .sparse_update import keep_update_sparse
    from .trainers.arguments import LotteryArguments
    from .trainers.callbacks import SparsityCallback
    from .trainers.lottery_trainer import LotteryTrainer
    from .trainers.sparse_trainer import SparseTrainer
    from .trainers.winning_sign_trainer import WinningSignTrainer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "adapter": ["merge_adapter"],
            "commands.parser": ["RecipeParser"],
            "hub.difference": ["Difference"],
            "hub.sparse_model": ["SparseModel"],
            "hub.ticket": ["Ticket"],
            "metrics": ["classification_metrics", "load_metric", "predicted_classes"],
            "prunable_weights": ["Prunable", "prunable"],
            "sparse_update": ["keep_update_sparse"],
            "trainers.arguments": ["LotteryArguments"],
            "trainers.callbacks": ["SparsityCallback"],
            "trainers.lottery_trainer": ["LotteryTrainer"],
            "trainers.sparse_trainer": ["SparseTrainer"],
            "trainers.winning_sign_trainer": ["WinningSignTrainer"],
        },
    )

__all__ = [
    "Difference",
    "LotteryArguments",
    "LotteryTrainer",
    "Prunable",
    "RecipeParser",
    "SparseModel",
    "SparseTrainer",
    "SparsityCallback",
    "Ticket",
    "WinningSignTrainer",
    "classification_metrics",
    "keep_update_sparse",
    "load_metric",
    "merge_adapter",
    "predicted_classes",
    "prunable",
]
