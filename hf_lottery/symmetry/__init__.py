"""Symmetry: which units of a network may be permuted, and the permutations themselves."""

from .discovery import discover
from .errors import SpecMismatchError, SymmetryError, SymmetryVerificationError
from .groups import Axis, Block, Group
from .permutation import Permutation, permute_
from .spec import PermutationSpec
from .verification import VerifyReport

__all__ = [
    "Axis",
    "Block",
    "Group",
    "Permutation",
    "PermutationSpec",
    "SpecMismatchError",
    "SymmetryError",
    "SymmetryVerificationError",
    "VerifyReport",
    "discover",
    "permute_",
]
