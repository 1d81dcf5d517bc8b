"""The start of a recipe: check that the processes of the launch work together, set logging and the seed."""

from __future__ import annotations

import atexit
import logging
import os
import sys

import torch.distributed as dist
import transformers
from transformers import TrainingArguments, set_seed

_CPU = "On a machine without accelerators, launch by `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu ...`."


def set_up(args: TrainingArguments) -> None:
    """Check the launch, and set logging and the seed.

    Args:
        args: The settings of the Trainer, which know the processes.

    Raises:
        SystemExit: See :func:`check_launch`.
    """
    check_launch(args.world_size)
    atexit.register(_leave)
    logging.basicConfig(format="%(message)s", level=logging.INFO if args.process_index == 0 else logging.WARNING)
    transformers.utils.logging.set_verbosity(args.get_process_log_level())
    # This hides the bars of loading and saving; the training has its own.
    transformers.utils.logging.disable_progress_bar()
    set_seed(args.seed)


def _leave() -> None:
    """Leave the process group in order; otherwise an interpreter may die of its threads at exit."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


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
