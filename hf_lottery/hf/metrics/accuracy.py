"""Accuracy as an ``evaluate`` module that needs no Hub: import the class, or ``evaluate.load`` this file."""

import datasets
import evaluate
import numpy

_DESCRIPTION = "Accuracy: the share of predictions that equal their reference, in [0, 1]."


class Accuracy(evaluate.Metric):
    """The share of predictions that equal their reference, in [0, 1]; int64 ``predictions`` and ``references`` [n]."""

    def _info(self):
        features = datasets.Features(
            {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")},
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_DESCRIPTION, features=features
        )

    def _compute(self, predictions, references):  # pyright: ignore[reportIncompatibleMethodOverride]
        return {"accuracy": float(numpy.mean(numpy.asarray(predictions) == numpy.asarray(references)))}
