"""Errors of the symmetry room."""


class SymmetryError(ValueError):
    """A spec or permutation contradicts itself, or a symmetry does not hold."""


class SpecMismatchError(SymmetryError):
    """A spec or permutation does not fit the model, mask or permutation it is used with."""


class SymmetryVerificationError(SymmetryError):
    """A permutation that the spec calls legal changes an output."""
