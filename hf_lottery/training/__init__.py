"""Training: keep a network sparse while it trains, rewind its weights, and find a ticket level by level."""

from . import rewind
from .holds import release
from .levels import Level, Start
from .rewind import RewindPoint, parse_rewind
from .search import find_ticket
from .snapshot import Snapshot, save_snapshot
from .sparsity import SparseHandle, SparsityLeakError, keep_sparse

__all__ = [
    "Level",
    "RewindPoint",
    "Snapshot",
    "SparseHandle",
    "SparsityLeakError",
    "Start",
    "find_ticket",
    "keep_sparse",
    "parse_rewind",
    "release",
    "rewind",
    "save_snapshot",
]
