"""Signs: a mask with the sign of every weight it keeps, and the norms it was found with."""

from .norm_folding import fold_norms_
from .norms import NormParameters, interpolated_norms, norm_parameters, norm_path
from .signed_mask import ZEROS, SignAgreement, SignedMask, Transfer, sign_agreement

__all__ = [
    "ZEROS",
    "NormParameters",
    "SignAgreement",
    "SignedMask",
    "Transfer",
    "fold_norms_",
    "interpolated_norms",
    "norm_parameters",
    "norm_path",
    "sign_agreement",
]
