"""Storage: bytes on disk, written whole or not at all, and checked when they are read."""

from .encoding import MaskFileError
from .hub_mixin import HubError

__all__ = [
    "HubError",
    "MaskFileError",
]
