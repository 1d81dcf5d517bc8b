"""Random generators: run a block that draws numbers, and go on afterwards as if it had drawn none."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_generators(*, accelerators: bool = True) -> Iterator[None]:
    """Put the generators of Python, numpy and torch back at the end of a block.

    Args:
        accelerators: Whether to put those of CUDA devices back too, which initialises CUDA.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if accelerators else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
