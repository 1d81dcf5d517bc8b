"""The garbage collector in many short trainings: leave out what was there before."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def freeze_collector() -> None:
    """Leave the objects that exist now out of garbage collections, for as long as the process lives."""
    gc.collect()
    gc.freeze()


@contextmanager
def frozen_collector() -> Iterator[None]:
    """Leave the objects that exist now out of garbage collections inside the block.

    A Trainer collects garbage at every ``train()``. The collector then goes through all objects of the process, of
    which torch and transformers alone make half a million: as long as hundreds of steps of a small network take. Inside
    this block it goes through the newer ones only. So old models and optimizers that wait for the collector are removed
    before, and what the block itself makes is collected as always.

    A process that has frozen objects already keeps them as they are; this does nothing then.
    """
    if gc.get_freeze_count():
        yield
        return
    freeze_collector()
    try:
        yield
    finally:
        gc.unfreeze()
