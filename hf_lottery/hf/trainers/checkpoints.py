"""Checkpoints with a record: where training stood, and the checksum of every file.

The record is written last, when all processes have saved, so a checkpoint without one was cut off. A checkpoint with a
missing or damaged file is never resumed from.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ...storage.atomic import write_atomically
from ...storage.checksums import DamagedFileError, check_files, hash_files, read_record, sealed_record

RECORD_NAME = "lottery_checkpoint.json"
# Without one of these the Trainer goes on all the same, with a fresh state.
_NEEDED = ("trainer_state.json", "scheduler.pt")
# The Trainer removes this file, of a checkpoint on SIGTERM, after the checkpoint is saved.
_PASSING = "checkpoint-is-incomplete.txt"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where training stood when a checkpoint was saved.

    Attributes:
        epoch: Number of the epoch, from 0.
        steps: Optimizer steps done in this epoch.
        ended: Whether the end of the epoch was reached, with its evaluation.
        epoch_stops: Whether a callback ended the epoch early.
        training_stops: Whether the training was to stop.
        processes: Number of processes.
        layout: How the optimizer's state is stored: ``"whole"``, or FSDP's state dict type.
    """

    epoch: int
    steps: int
    ended: bool
    epoch_stops: bool
    training_stops: bool
    processes: int
    layout: str


def checkpoints_in(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a training in its folder, the newest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[11:]), reverse=True)


def record_checkpoint(checkpoint: Path, place: Place, *, beside: Iterable[Path] = ()) -> None:
    """Record that a checkpoint is whole.

    Args:
        checkpoint: Its folder, with the files of all processes.
        place: Where training stands.
        beside: Files outside the folder without which the checkpoint is of no use.
    """
    inside = [path for path in checkpoint.rglob("*") if path.is_file() and path.name not in (RECORD_NAME, _PASSING)]
    record = {"place": asdict(place), "files": hash_files(checkpoint, [*inside, *beside])}
    write_atomically(checkpoint / RECORD_NAME, sealed_record(record))


def read_place(checkpoint: Path) -> Place | None:
    """Return where training stood at a checkpoint; None if it has no record."""
    if not (checkpoint / RECORD_NAME).exists():
        return None
    return Place(**read_record(checkpoint / RECORD_NAME)["place"])


def check_checkpoint(checkpoint: Path, *, layout: str, with_best: bool) -> None:
    """Check that a checkpoint with a record can be resumed from.

    Args:
        checkpoint: Its folder.
        layout: How this launch stores the optimizer's state.
        with_best: Whether the training ends with the best model, which another checkpoint may hold.

    Raises:
        DamagedFileError: A file of it, or of the checkpoint with the best model so far, is missing or damaged, or its
            record is.
        ValueError: This launch cannot read its optimizer's state.
    """
    record = read_record(checkpoint / RECORD_NAME)
    if (stored := record["place"]["layout"]) != layout:
        raise ValueError(
            f"a checkpoint must store the optimizer's state in the layout of this launch, {layout}; received {stored} "
            f"in {checkpoint}. Launch as before."
        )
    check_files(checkpoint, record["files"])
    if with_best and (kept := best_beside(checkpoint)) not in (None, checkpoint):
        check_files(kept, read_record(kept / RECORD_NAME)["files"])


def best_beside(checkpoint: Path) -> Path | None:
    """Return the checkpoint with the best model so far, which is beside this one also where the folder was moved."""
    best = json.loads((checkpoint / "trainer_state.json").read_text()).get("best_model_checkpoint")
    return checkpoint.parent / Path(best).name if best else None


def last_whole(folder: Path, *, layout: str, with_best: bool) -> Path | None:
    """Return the newest checkpoint that can be resumed from, and say which newer ones are passed over, and why."""
    for checkpoint in checkpoints_in(folder):
        try:
            check_checkpoint(checkpoint, layout=layout, with_best=with_best)
        except ValueError as error:
            logger.warning(
                "%s is passed over, and training goes on from an older checkpoint or from its start: %s",
                checkpoint, error,
            )  # fmt: skip
            continue
        return checkpoint
    return None


def check_unrecorded(checkpoint: Path) -> None:
    """Check a checkpoint of another Trainer, which has no record, as far as that goes.

    Raises:
        DamagedFileError: A file is missing without which the Trainer would go on with a fresh optimizer, schedule or
            random numbers.
    """
    missing = [name for name in _NEEDED if not (checkpoint / name).is_file()]
    missing += [name for name in ("optimizer", "rng_state") if not any(checkpoint.glob(f"{name}*"))]
    if missing:
        raise DamagedFileError(
            f"a checkpoint must hold all that training goes on from; received {checkpoint} without {missing[0]}. Pass "
            "an older checkpoint, or load its weights and train anew."
        )
    logger.warning("%s has no checksums, so damage to its files would not be noticed.", checkpoint)
