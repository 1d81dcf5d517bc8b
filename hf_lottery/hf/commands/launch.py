"""The start of a recipe: check that the processes of the launch work together, set logging and the seed."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import transformers
from transformers import TrainingArguments, set_seed

from ...report.style import check_drawing
from ...storage.atomic import check_folder

# What the commands leave in their folders: pages, searches, tickets, masks.
RESULTS = ("report.html", "lottery_state.json", "rewind.safetensors", "mask_config.json")
_CPU = "On a machine without accelerators, launch by `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu ...`."


def set_up(args: TrainingArguments, *read: Any, writes: bool = True, fresh: bool = False) -> None:
    """Check the launch and the output folder, and set logging and the seed.

    Args:
        args: The settings of the Trainer, which know the processes.
        read: Dataclasses with the options of the command; folders that they name are read.
        writes: Whether the command writes results, and draws pictures.
        fresh: Whether the command must not write over results.

    Raises:
        SystemExit: See :func:`check_launch`.
        ValueError: See :func:`check_output`.
        PermissionError: See :func:`check_output`.
        ImportError: Matplotlib is missing.
    """
    check_launch(args.world_size)
    check_output(str(args.output_dir), *read, writes=writes, fresh=fresh)
    if writes:
        check_drawing()
    atexit.register(_leave)
    remember_absence("lomo_optim")
    logging.basicConfig(format="%(message)s", level=logging.INFO if args.process_index == 0 else logging.WARNING)
    transformers.utils.logging.set_verbosity(args.get_process_log_level())
    # This hides the bars of loading and saving; the training has its own.
    transformers.utils.logging.disable_progress_bar()
    if not torch.accelerator.is_available():  # a loader would warn of it at every level
        args.dataloader_pin_memory = False
    if args.disable_tqdm and (datasets := sys.modules.get("datasets")) is not None:
        datasets.disable_progress_bars()
    set_seed(args.seed)


def _check_fresh(folder: Path) -> None:
    """Refuse a folder with results of a command, which another one would write over."""
    for name in RESULTS:
        if (folder / name).exists():
            raise ValueError(
                f"the output must be a folder without results; received {folder}, which has {name}. Choose another, or "
                "delete that folder."
            )


def remember_absence(package: str) -> None:
    """Note in this process that a package is not installed, as Python does by None in ``sys.modules``.

    accelerate 1.15 searches the disk for one twice at every optimizer step, a tenth of a step of a small network.

    Args:
        package: Its name. Nothing happens if it is installed.
    """
    if importlib.util.find_spec(package) is None:
        cast(Any, sys.modules)[package] = None


def _leave() -> None:
    """Leave the process group in order; otherwise an interpreter may die of its threads at exit."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def check_output(output: str, *read: Any, writes: bool = True, fresh: bool = False) -> None:
    """Check that a command can write to a folder, and does not read it as well.

    Args:
        output: The folder, which need not exist.
        read: Dataclasses with options, whose values may be folders.
        writes: Whether the command writes to it at all.
        fresh: Whether the command must not write over results.

    Raises:
        ValueError: The output is a file, lies in a file, or is a folder that is read; or ``fresh``, and it holds
            results.
        PermissionError: The user may not write there.
    """
    folder = Path(output)
    check_folder(folder, what="the output")
    found = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if writes and not os.access(found, os.W_OK | os.X_OK):  # most commands write only after they have trained
        raise PermissionError(f"the output must be a folder to write to; received {output}, but {found} is read-only.")
    if fresh:
        _check_fresh(folder)
    for option, value in (pair for options in read for pair in vars(options).items()):
        source = Path(str(value).removeprefix("checkpoint:")).expanduser()
        if value and folder.is_dir() and source.is_dir() and source.samefile(folder):
            raise ValueError(
                f"output_dir must be another folder than {option}, which is read; received {output} for both. "
                "Choose another output_dir."
            )


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
