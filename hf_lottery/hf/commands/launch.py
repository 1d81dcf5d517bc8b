"""The launch check: as many processes work together as were asked for."""

from __future__ import annotations

import os
import sys

_CPU = "On a machine without accelerators, launch by `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu ...`."


def check_launch(world_size: int) -> None:
    """Stop unless the processes that were launched know of each other.

    Args:
        world_size: How many processes this one knows of.

    Raises:
        SystemExit: Several processes were launched and each is alone; or several were asked for and one was launched,
            as `accelerate launch --cpu` does: it then leaves the address of a meeting to which nobody comes.
    """
    launched = int(os.environ.get("WORLD_SIZE", world_size))
    if launched != world_size:
        sys.exit(
            f"the processes of a launch must know of each other; received {launched} processes that each would work "
            f"alone (world size {world_size}). {_CPU}"
        )
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ
    if world_size == 1 and by_accelerate and "MASTER_ADDR" in os.environ:
        sys.exit(
            "a launch must start the processes that it was asked for; received one of several, with a world size of 1. "
            f"{_CPU} If one is what you want, unset MASTER_ADDR."
        )
