"""RunFolder: the files of a LotteryTrainer run, from which it can be resumed.

::

    output_dir/
      lottery_state.json        settings, what the run began from, finished levels; rewritten after every level
      _in_use.lock              who uses the folder, while someone does
      rewind.safetensors        the weights that levels rewind to, if later than the start
      level-00/  level-01/ ...  mask and starting weights of the level (a ticket), and its checkpoints
        trained/                its trained model
      ticket/                   the last level as a ticket with a card
      signed/                   the signed mask (WinningSignTrainer only)
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from ...masks.file import CONFIG_NAME, stage_mask
from ...masks.mask import Mask
from ...storage.atomic import staged_folder, sweep, write_atomically
from ...training.snapshot import Snapshot

REWIND_NAME = "rewind.safetensors"
COMPLETE_NAME = "lottery_checkpoint.json"
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
        ValueError: The run in the folder has other settings.
    """

    def __init__(self, root: str | Path, settings: dict[str, Any], *, resume: bool):
        self.root = Path(root)
        self.finished: list[dict[str, Any]] = []
        self.began_from: dict[str, Any] | None = None
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
        stored = json.loads(state.read_text())
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
        write_atomically(self.root / _STATE_NAME, (json.dumps(state, indent=2) + "\n").encode())

    def sweep(self) -> None:
        """Delete files that a killed process wrote in part."""
        for folder in (self.root, *self.root.glob("level-*")):
            sweep(folder)
        self.handed_over.unlink(missing_ok=True)

    def write_start(self, number: int, mask: Mask, start: Path) -> None:
        """Write what a level starts from: its mask, and a link to the file that holds the weights."""
        with staged_folder(self.level(number), last=CONFIG_NAME) as stage:
            link_or_copy(start, stage / REWIND_NAME)
            stage_mask(stage, mask, extra={"level": number}, compress=False)
        self.handed_over.unlink(missing_ok=True)

    def has_start(self, number: int) -> bool:
        """Tell whether :meth:`write_start` has finished for a level."""
        return (self.level(number) / CONFIG_NAME).exists()

    def read_start(self, number: int) -> tuple[Mask, Snapshot]:
        """Read the mask and the weights that a level starts from."""
        folder = self.level(number)
        return Mask.from_pretrained(folder), Snapshot.load(folder / REWIND_NAME)

    def mark_complete(self, checkpoint: Path, layout: str) -> None:
        """Mark a checkpoint that all processes have written, with the layout of its optimizer state."""
        write_atomically(checkpoint / COMPLETE_NAME, (json.dumps({"layout": layout}) + "\n").encode())

    def last_checkpoint(self, number: int, layout: str) -> str | None:
        """Find the newest complete checkpoint of a level whose optimizer state this launch can read, if any.

        Args:
            number: The level.
            layout: How this launch stores the state: ``"whole"``, or FSDP's state dict type.
        """
        folders = [path for path in self.level(number).glob("checkpoint-*") if path.name[11:].isdecimal()]
        for checkpoint in sorted(folders, key=lambda path: int(path.name[11:]), reverse=True):
            if not (checkpoint / COMPLETE_NAME).exists():
                continue
            if (stored := json.loads((checkpoint / COMPLETE_NAME).read_text())["layout"]) == layout:
                return str(checkpoint)
            logger.warning(
                "%s holds the optimizer's state in layout %s, which this launch (%s) cannot read: level %d goes back "
                "to its last readable checkpoint, or its start.", checkpoint, stored, layout, number
            )  # fmt: skip
        return None

    def drop_trained(self, number: int) -> None:
        """Delete the trained model of a level."""
        shutil.rmtree(self.trained(number), ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, so that many levels share one copy of the rewind weights; copy it if links do not work."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
