"""Storage: bytes on disk, written whole or not at all, and checked when they are read."""

from .encoding import MaskFileError

__all__ = [
    "MaskFileError",
]
