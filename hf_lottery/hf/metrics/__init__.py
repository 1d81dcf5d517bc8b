"""Metrics: our own ``evaluate`` modules, which work offline, files of your own, and accuracy for the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction

# Our own metrics: name -> class, in the module of that name.
_OURS = {
    "accuracy": "Accuracy",
    "error_barrier": "ErrorBarrier",
    "mask_overlap": "MaskOverlap",
    "sign_agreement": "SignAgreementMetric",
}


def load_metric(name: str, **options: Any) -> Any:
    """Load an ``evaluate`` module: one of ours, or a file of your own. No code is loaded from a repository.

    Args:
        name: "accuracy", "error_barrier", "mask_overlap", "sign_agreement", or the path of a Python file.
        options: Options of ``evaluate``, such as ``num_process``, ``process_id`` and ``experiment_id`` if each process
            adds its share of the samples. The Trainer gathers the samples first and needs none of these.

    Raises:
        ValueError: The name is neither. ``evaluate.load`` would run code of a repository.
        ImportError: ``evaluate`` or ``datasets`` is not installed.
    """
    try:
        import evaluate
    except ImportError as error:
        raise ImportError("metrics need the evaluate library. Install hf-lottery[recipes].") from error
    if name not in _OURS:
        if not (name.endswith(".py") and Path(name).is_file()):
            raise ValueError(
                f"a metric must be {', '.join(_OURS)} or a Python file; received {name!r:.80}. evaluate.load would "
                "run code of a repository for it: if you trust it, call it yourself, for a compute_metrics of yours."
            )
        return evaluate.load(name, **options)
    module = import_module(f".{name}", __name__)
    options.setdefault("keep_in_memory", options.get("num_process", 1) == 1)  # several processes share files
    return getattr(module, _OURS[name])(**options)


def classification_metrics(*, name: str = "accuracy") -> Callable[[EvalPrediction], dict[str, float]]:
    """Make ``compute_metrics`` for a Trainer that classifies: the metric ``name`` of the predicted classes.

    Pass :func:`predicted_classes` as ``preprocess_logits_for_metrics``, so that only the classes are gathered.
    """
    metric = load_metric(name)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        classes = np.asarray(prediction.predictions)
        return metric.compute(predictions=classes.reshape(-1), references=np.asarray(prediction.label_ids).reshape(-1))

    return compute_metrics


def predicted_classes(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Return the predicted classes ``[n]`` of logits ``[n, classes]``, as ``preprocess_logits_for_metrics``."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)
