"""RunFolder: the files of a LotteryTrainer run, from which it can be resumed.

::

    output_dir/
      lottery_state.json        settings, what the run began from, finished levels; rewritten after every level
      _in_use.lock              who uses the folder, while someone does
      rewind.safetensors        the weights that levels rewind to, if later than the start
      level-00/  level-01/ ...  mask and starting weights of the level (a ticket); its checkpoints until it is finished
        trained/                its trained model; the mask's files are second names of the level's
        lottery_files.json      checksums of mask and starting weights; in trained/, of the trained model
      ticket/                   the last level as a ticket with a card
      signed/                   the signed mask (WinningSignTrainer only)

Every file that a resume reads has a checksum. A damaged checkpoint is passed over (see ``checkpoints.py``); any other
damage stops the resume.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from ...masks.file import CONFIG_NAME, MASK_NAME, stage_mask
from ...masks.mask import Mask
from ...storage.atomic import staged_folder, sweep, write_atomically
from ...storage.checksums import check_files, hash_files, read_record, sealed_record
from ...structured import UnitMask
from ...training.snapshot import Snapshot
from .checkpoints import checkpoints_in

REWIND_NAME = "rewind.safetensors"
FILES_NAME = "lottery_files.json"
_STATE_NAME = "lottery_state.json"
logger = logging.getLogger(__name__)


class RunFolder:
    """The folder of one search for a ticket.

    Args:
        root: ``output_dir`` of the run.
        settings: The settings that must be the same when the run is resumed.
        resume: Whether to continue where an earlier process stopped.

    Attributes:
        exists: Whether the folder held this run already.
        began_from: What the run began from; see :class:`~hf_lottery.hf.trainers.run_identity.RunIdentity`.

    Raises:
        FileExistsError: The folder holds a run and ``resume`` is false, or it holds levels without a run.
        DamagedFileError: The file of the run is damaged.
        ValueError: The run in the folder has other settings.
    """

    def __init__(self, root: str | Path, settings: dict[str, Any], *, resume: bool):
        self.root = Path(root)
        self.finished: list[dict[str, Any]] = []
        self.began_from: dict[str, Any] | None = None
        self._has_checksums = True
        self._settings = json.loads(json.dumps(settings))  # in the form in which they are read back
        state = self.root / _STATE_NAME
        self.exists = state.exists()
        if not self.exists:
            if levels := sorted(self.root.glob("level-*")):
                raise FileExistsError(
                    f"output_dir must not hold levels without {_STATE_NAME}; received {levels[0]}. "
                    "Choose another output_dir, or delete them."
                )
            return
        if not resume:
            raise FileExistsError(
                f"output_dir must not hold a run already; received {self.root}. "
                "Pass resume_from_checkpoint=True to continue it, or choose another output_dir."
            )
        self._has_checksums = not _is_old(state)
        stored = read_record(state) if self._has_checksums else json.loads(state.read_text())
        for name in sorted(self._settings.keys() | stored["settings"].keys()):
            old, new = stored["settings"].get(name), self._settings.get(name)
            if old != new:
                raise ValueError(
                    f"a resumed run must have the settings it began with; received {name}={new!r} instead of {old!r}. "
                    "Restore it, or choose another output_dir."
                )
        self.finished, self.began_from = stored["finished"], stored.get("began_from")

    def level(self, number: int) -> Path:
        """Return the folder of a level."""
        return self.root / f"level-{number:02d}"

    def trained(self, number: int) -> Path:
        """Return the folder of a level's trained model."""
        return self.level(number) / "trained"

    @property
    def ticket(self) -> Path:
        """The folder of the ticket."""
        return self.root / "ticket"

    @property
    def signed(self) -> Path:
        """The folder of the signed mask (WinningSignTrainer only)."""
        return self.root / "signed"

    @property
    def handed_over(self) -> Path:
        """The file of the next level's starting weights, until it is linked into the level's folder."""
        return self.root / "next.safetensors"

    @property
    def moment(self) -> Path:
        """The file of the weights that levels rewind to."""
        return self.root / REWIND_NAME

    def save(self) -> None:
        """Write settings and finished levels, which makes the folder hold this run."""
        state = {"settings": self._settings, "began_from": self.began_from, "finished": self.finished}
        write_atomically(self.root / _STATE_NAME, sealed_record(state))

    def check(self, levels: int) -> None:
        """Check the files that a resume reads, except those of checkpoints.

        Args:
            levels: How many levels the run has.

        Raises:
            DamagedFileError: A file is missing or damaged.
        """
        last = min(len(self.finished), levels - 1)
        began = self.finished or self.level(0).exists()  # or it was killed before it wrote the start of level 0
        folders = [self.level(number) for number in range(last + 1)] if began else []
        if len(self.finished) == levels:
            folders.append(self.trained(last))
        if not self._has_checksums:
            logger.warning("The run in %s is of an older version, without checksums: damage is not noticed.", self.root)
            for folder in folders:
                self._record(folder)
            self._has_checksums = True
        for folder in folders:
            check_files(folder, read_record(folder / FILES_NAME)["files"])

    def record_trained(self, number: int) -> None:
        """Record that the trained model of a level is whole."""
        folder = self.trained(number)
        if (folder / MASK_NAME).exists():  # it is that of the level, whose files say so too
            for name in (MASK_NAME, CONFIG_NAME):
                (folder / name).unlink()
                link_or_copy(self.level(number) / name, folder / name)
        self._record(folder)

    def _record(self, folder: Path) -> None:
        files = [path for path in folder.glob("*") if path.is_file() and path.name != FILES_NAME]
        write_atomically(folder / FILES_NAME, sealed_record({"files": hash_files(folder, files)}))

    def sweep(self) -> None:
        """Delete files that a killed process wrote in part."""
        for folder in (self.root, *self.root.glob("level-*")):
            sweep(folder)
        self.handed_over.unlink(missing_ok=True)

    def write_start(self, number: int, mask: Mask, start: Path) -> None:
        """Write what a level starts from: its mask, and a link to the file that holds the weights."""
        with staged_folder(self.level(number), last=FILES_NAME) as stage:
            link_or_copy(start, stage / REWIND_NAME)
            stage_mask(stage, mask, extra={"level": number, **mask.config_keys()}, compress=False)
            self._record(stage)
        self.handed_over.unlink(missing_ok=True)

    def has_start(self, number: int) -> bool:
        """Tell whether :meth:`write_start` has finished for a level."""
        return (self.level(number) / FILES_NAME).exists()

    def read_start(self, number: int) -> tuple[Mask, Snapshot]:
        """Read the mask and the weights that a level starts from."""
        return self.read_mask(number), Snapshot.load(self.level(number) / REWIND_NAME)

    def read_mask(self, number: int) -> Mask:
        """Read the mask that a level trains under, with its units if it has any."""
        return UnitMask.from_folder(self.level(number))

    def clean(self, *, models: bool, checkpoints: bool) -> None:
        """Delete what no resume reads any more, now that one more level is finished.

        Args:
            models: Whether to keep the trained model of the level before.
            checkpoints: Whether to keep the checkpoints of the level.
        """
        last = len(self.finished) - 1
        unread = [] if checkpoints or last < 0 else checkpoints_in(self.level(last))
        if last > 0 and not models:
            unread.append(self.trained(last - 1))
        for folder in unread:
            shutil.rmtree(folder, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, so that many levels share one copy of the rewind weights; copy it if links do not work."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _is_old(state: Path) -> bool:
    """Tell whether the file of a run is of version 0.1.0, which kept no checksums."""
    try:
        return json.loads(state.read_bytes()).keys() == {"settings", "finished"}
    except (ValueError, AttributeError):
        return False
