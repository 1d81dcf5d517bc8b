"""Agreement of signs as an ``evaluate`` module that needs no Hub: import the class, or ``evaluate.load`` this file."""

import datasets
import evaluate
import torch

from hf_lottery.masks.mask import Mask  # absolute, as evaluate copies this file
from hf_lottery.signs.signed_mask import sign_agreement

_DESCRIPTION = """How far the signs of the weights are those of a ticket.

`predictions` and `references` are signs, -1, 0 or +1, one flattened row for each parameter. Rows may have different
lengths. Weights count if their reference is not 0; these are the weights that the ticket keeps. `sign_agreement` is the
fraction of these with equal signs, in [0, 1]. Chance is about one half."""


class SignAgreementMetric(evaluate.Metric):
    """Fraction of equal signs where ``references`` is not 0, one row of int8 for each parameter: "sign_agreement"."""

    def _info(self):
        row = datasets.Sequence(datasets.Value("int8"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="Oh et al., 2025, arXiv:2504.05357.",
            inputs_description=_DESCRIPTION,
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(self, predictions, references):  # pyright: ignore[reportIncompatibleMethodOverride]
        for row, (mine, theirs) in enumerate(zip(predictions, references, strict=True)):
            if len(mine) != len(theirs):
                raise ValueError(
                    f"signs must have as many weights as their references; received {len(mine)} and {len(theirs)} in "
                    f"row {row}."
                )
        signs, wanted = (
            {str(row): torch.tensor(values, dtype=torch.int8) for row, values in enumerate(rows)}
            for rows in (predictions, references)
        )
        kept = Mask({name: sign != 0 for name, sign in wanted.items()})
        return {"sign_agreement": sign_agreement(kept, wanted, signs).overall}
