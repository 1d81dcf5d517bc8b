"""Agreement of signs as an ``evaluate`` module that needs no Hub: import the class, or ``evaluate.load`` this file."""

import datasets
import evaluate
import numpy

_DESCRIPTION = """How far the signs of the weights are those of a ticket.

`predictions` and `references` are signs, -1, 0 or +1, one row a parameter, flattened; the rows may have different
lengths. Counted are the weights whose reference is not 0: those that the ticket keeps. `sign_agreement` is the fraction
of these with equal signs, in [0, 1]; chance is about one half."""


class SignAgreement(evaluate.Metric):
    """Fraction of equal signs where ``references`` has one, one row of int8 a parameter: "sign_agreement"."""

    def _info(self):
        row = datasets.Sequence(datasets.Value("int8"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="Oh et al., 2025, arXiv:2504.05357.",
            inputs_description=_DESCRIPTION,
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(self, predictions, references):  # pyright: ignore[reportIncompatibleMethodOverride]
        equal = count = 0
        for row, (mine, theirs) in enumerate(zip(predictions, references, strict=True)):
            if len(mine) != len(theirs):
                raise ValueError(
                    f"signs must have as many weights as their references; received {len(mine)} and {len(theirs)} in "
                    f"row {row}."
                )
            signs, wanted = numpy.asarray(mine), numpy.asarray(theirs)
            counted = wanted != 0
            equal += int(((signs == wanted) & counted).sum())
            count += int(counted.sum())
        return {"sign_agreement": equal / count if count else 1.0}
