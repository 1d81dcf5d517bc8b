"""Masks: which weights of a network stay."""

from .mask import Mask, MaskMismatchError, Overlap
from .mask_series import MaskSeries

__all__ = [
    "Mask",
    "MaskMismatchError",
    "MaskSeries",
    "Overlap",
]
