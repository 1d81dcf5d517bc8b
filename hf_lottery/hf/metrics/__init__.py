"""Metrics for the Trainer: accuracy that works offline, and every other metric of the ``evaluate`` library by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction


def load_metric(name: str) -> Any:
    """An ``evaluate`` metric: ours for "accuracy", else ``evaluate.load(name)``, which may ask the Hub.

    Raises:
        ImportError: ``evaluate`` or ``datasets`` is not installed.
    """
    try:
        import evaluate
    except ImportError as error:
        raise ImportError("metrics need the evaluate library. Install hf-lottery[recipes].") from error
    if name == "accuracy":
        from .accuracy import Accuracy

        return Accuracy(keep_in_memory=True)
    return evaluate.load(name)


def classification_metrics(name: str = "accuracy") -> Callable[[EvalPrediction], dict[str, float]]:
    """``compute_metrics`` for a Trainer that classifies: the metric ``name`` of the predicted classes.

    Pass :func:`predicted_classes` as ``preprocess_logits_for_metrics`` so that only the classes are gathered.
    """
    metric = load_metric(name)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        classes = np.asarray(prediction.predictions)
        return metric.compute(predictions=classes.reshape(-1), references=np.asarray(prediction.label_ids).reshape(-1))

    return compute_metrics


def predicted_classes(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """``preprocess_logits_for_metrics``: logits ``[n, classes]`` -> classes ``[n]``."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)
