"""Overlap of masks as an ``evaluate`` module that needs no Hub: import the class, or ``evaluate.load`` this file."""

import datasets
import evaluate
import torch

from hf_lottery.masks.mask import Mask  # absolute, as evaluate copies this file

_DESCRIPTION = """How far two masks keep the same weights.

`predictions` and `references` are the masks, one flattened row for each parameter; True keeps. Rows may have different
lengths. `mask_overlap` is the intersection over union of the kept weights, in [0, 1], and `mask_overlap_chance` what
independent masks of the same densities, parameter by parameter, would have in expectation."""


class MaskOverlap(evaluate.Metric):
    """Overlap of two masks, given as one row of bool for each parameter: "mask_overlap" and "mask_overlap_chance"."""

    def _info(self):
        row = datasets.Sequence(datasets.Value("bool"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_DESCRIPTION,
            features=datasets.Features({"predictions": row, "references": row}),
        )

    def _compute(self, predictions, references):  # pyright: ignore[reportIncompatibleMethodOverride]
        masks = [
            Mask({str(k): torch.tensor(row, dtype=torch.bool) for k, row in enumerate(rows)})
            for rows in (predictions, references)
        ]
        overlap = masks[0].overlap(masks[1])
        return {"mask_overlap": overlap.iou, "mask_overlap_chance": overlap.chance}
