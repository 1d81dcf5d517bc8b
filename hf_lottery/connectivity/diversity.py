"""Diversity: how differently several networks predict, and what their ensemble gains.

References:
    Fort, Hu and Lakshminarayanan, 2019, "Deep Ensembles: A Loss Landscape Perspective", arXiv:1912.02757
    (disagreement).
    Evci, Ioannou, Keskin and Dauphin, 2022, "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win",
    arXiv:2010.03533 (KL and JS between tickets).
    Adnan et al., 2025, "Sparse Training from Random Initialization: Aligning Lottery Ticket Masks using Weight
    Symmetry", arXiv:2505.05143, Table 1.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from ..networks.display import html_table


class Diversity(NamedTuple):
    """How differently several networks predict, as :func:`ensemble_diversity` returns it.

    Accuracies and disagreement are in [0, 1], divergences in nats. All are means over the samples. The last three are
    also means over the pairs of networks; ``p`` and ``q`` are the softmax outputs of a pair on one sample.

    Attributes:
        mean_accuracy: Mean of the networks' accuracies.
        ensemble_accuracy: Accuracy of the mean of the softmax outputs.
        disagreement: Fraction of the samples for which two networks predict different classes (Fort et al., 2019).
        kl: ``sum p * log(p / q)``, over both orders of a pair (Evci et al., 2022); 0 or more.
        js: ``(KL(p, m) + KL(q, m)) / 2`` with ``m = (p + q) / 2``; in [0, log 2].
    """

    mean_accuracy: float
    ensemble_accuracy: float
    disagreement: float
    kl: float
    js: float

    def __repr__(self) -> str:
        return f"Diversity({', '.join(f'{name}={value:.4g}' for name, value in self._asdict().items())})"

    def _repr_html_(self) -> str:
        return html_table(["measure", "value"], [[name, f"{value:.4g}"] for name, value in self._asdict().items()])


def ensemble_diversity(logits: ArrayLike, labels: ArrayLike) -> Diversity:
    """Measure how differently several networks predict on the same samples, and what their ensemble gains.

    Args:
        logits: Floats ``[networks, samples, classes]`` of two networks or more.
        labels: Class numbers ``[samples]``.

    Raises:
        ValueError: The shapes do not fit, there is nothing to compare, or a logit is NaN.

    Example:
        >>> found = ensemble_diversity([[[4.0, 0.0], [0.0, 4.0]], [[9.0, 0.0], [9.0, 0.0]]], [0, 0])
        >>> found.disagreement, found.mean_accuracy, found.ensemble_accuracy
        (0.5, 0.75, 1.0)

    Reference:
        Adnan et al., 2025, arXiv:2505.05143, Table 1, accuracies in percent. The paper does not say whether an ensemble
        averages logits or probabilities, nor which order of a pair counts. This function averages probabilities, and
        counts both orders.
    """
    outputs, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if outputs.ndim != 3 or len(outputs) < 2 or not outputs.size or labels.shape != outputs.shape[1:2]:
        raise ValueError(
            "logits must be [networks, samples, classes] of two networks or more, and labels [samples]; received "
            f"{list(outputs.shape)} and {list(labels.shape)}. Stack the logits of the networks."
        )
    if np.isnan(outputs).any():
        raise ValueError("logits must be numbers; received NaN. Look for the network that diverged.")
    logs = log_softmax(outputs, axis=-1)
    classes = outputs.argmax(-1)
    mean = np.exp(logs).mean(0)
    pairs = list(combinations(range(len(logs)), 2))
    return Diversity(
        mean_accuracy=float((classes == labels).mean()),
        ensemble_accuracy=float((mean.argmax(-1) == labels).mean()),
        disagreement=float(np.mean([(classes[i] != classes[j]).mean() for i, j in pairs])),
        kl=float(np.mean([(_kl(logs[i], logs[j]) + _kl(logs[j], logs[i])) / 2 for i, j in pairs])),
        js=float(np.mean([_js(logs[i], logs[j]) for i, j in pairs])),
    )


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    """The mean over the samples of the divergence of ``q`` from ``p``; both are logarithms ``[samples, classes]``."""
    with np.errstate(invalid="ignore"):  # -inf minus -inf, where p is 0
        terms = np.exp(p) * (p - q)
    return float(np.where(np.isneginf(p), 0.0, terms).sum(-1).mean())


def _js(p: np.ndarray, q: np.ndarray) -> float:
    middle = np.logaddexp(p, q) - np.log(2)
    return (_kl(p, middle) + _kl(q, middle)) / 2
