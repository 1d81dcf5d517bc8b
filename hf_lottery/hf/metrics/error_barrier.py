"""The error barrier as an ``evaluate`` module that needs no Hub: import the class, or ``evaluate.load`` this file."""

import datasets
import evaluate
import numpy

from hf_lottery.connectivity.barrier import Barrier  # absolute, as evaluate copies this file

_DESCRIPTION = """Error barrier between two networks, from errors on the straight line between them.

`errors` is [samples, points]: the error of every sample, 0 or 1 or a loss, for networks evenly spaced from the first to
the second, both included. One row of mean errors works too. `error_barrier` is the largest mean error minus the mean of
the errors at the two ends, `linear_error_barrier` the largest excess over the straight line between the ends."""
_CITATION = """Frankle et al., 2020, arXiv:1912.05671; Entezari et al., 2022, arXiv:2110.06296."""


class ErrorBarrier(evaluate.Measurement):
    """Barriers of float64 ``errors`` [samples, points]: "error_barrier" and "linear_error_barrier"."""

    def _info(self):
        features = datasets.Features({"errors": datasets.Sequence(datasets.Value("float64"))})
        return evaluate.MeasurementInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_DESCRIPTION, features=features
        )

    def _compute(self, errors):  # pyright: ignore[reportIncompatibleMethodOverride]
        lengths = {len(row) for row in errors}
        if len(lengths) != 1 or min(lengths) < 2:
            raise ValueError(
                f"errors must be [samples, points], with 2 points or more; received rows of {sorted(lengths)} points."
            )
        mean = numpy.mean(numpy.asarray(errors, dtype=numpy.float64), axis=0).tolist()
        found = Barrier(tuple(numpy.linspace(0, 1, len(mean)).tolist()), tuple(mean))
        return {"error_barrier": found.barrier, "linear_error_barrier": found.linear_barrier}
