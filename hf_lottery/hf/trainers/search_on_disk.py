"""SearchOnDisk: masks, starts and results of a search in its folder, written once for all processes of a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...masks.mask import Mask
from ...training.levels import Level
from ...training.rewind import RewindPoint
from ...training.snapshot import Snapshot, save_snapshot
from .callbacks import SnapshotCallback
from .main_process import on_main
from .run_folder import REWIND_NAME, RunFolder
from .run_settings import plain
from .sparse_trainer import SparseTrainer


class SearchOnDisk:
    """A search that keeps its levels in a folder, so that it can be resumed there, on any number of processes.

    One process writes. The others wait for it, because they read what it writes.

    Args:
        trainer: The Trainer, whose network is trained.
        run: The folder.
        rewind: The point that each level starts from.
        moment: The optimizer step of that point.
        keep_models: Whether to keep the trained models of all levels, not only the last.
        keep_checkpoints: Whether to keep the checkpoints of finished levels.

    Attributes:
        run: The folder.
    """

    def __init__(
        self,
        trainer: SparseTrainer,
        run: RunFolder,
        *,
        rewind: RewindPoint,
        moment: int,
        keep_models: bool,
        keep_checkpoints: bool,
    ):
        self.run = run
        self._trainer, self._rewind, self._moment = trainer, rewind, moment
        self._kept = {"models": keep_models, "checkpoints": keep_checkpoints}

    def open(self, dense: Mask, *, levels: int) -> None:
        """Make the folder hold this run, and write the start of level 0 unless it is there.

        Args:
            dense: The mask of level 0.
            levels: How many levels the run has.

        Raises:
            DamagedFileError: A file that the run goes on from is missing or damaged.
        """
        if self.run.exists:
            on_main(lambda: self.run.check(levels), main=self._trainer.is_world_process_zero())
        has_start = self.run.has_start(0)
        # A process that was killed may not have come to the cleaning.
        self.write(lambda: (self.run.save(), self.run.sweep(), self.run.clean(**self._kept)))
        if not has_start:
            self._save_start(0, dense)

    def begin(self, number: int) -> tuple[Mask, Snapshot]:
        """Put the Trainer where a level starts, and return the level's mask and starting weights."""
        mask, start = self.run.read_start(number)
        start.restore_(self._trainer.network)
        self._trainer.mask = mask if number else None
        self._trainer.first_step = start.step
        self._trainer.optimizer = self._trainer.lr_scheduler = None
        return mask, start

    @contextmanager
    def capture(self, number: int) -> Iterator[None]:
        """Save the weights that levels rewind to while level 0 trains; other levels are only trained."""
        if number or not self._moment:
            yield
            return
        callback = SnapshotCallback(self._moment, self.run.moment)
        self._trainer.add_callback(callback)
        try:
            yield
        finally:
            self._trainer.remove_callback(callback)

    def hand_over(self, number: int, mask: Mask) -> None:
        """Write what a level starts from, before the level before it counts as finished.

        Raises:
            ValueError: Training ended before the step to rewind to.
        """
        if self._rewind.keeps_weights:
            return self._save_start(number, mask)
        # The file of the level before was checked when this process began, and the moment's with its checkpoints.
        later = number > 1 or not self._moment
        begin = self.run.level(number - 1) / REWIND_NAME if later else self.run.moment
        if not begin.exists():
            raise ValueError(
                f"the rewind step must lie within training; received step {self._moment}, "
                f"but training stopped at step {self._trainer.state.global_step}. Rewind earlier."
            )
        self.write(lambda: self.run.write_start(number, mask, begin))

    def record(self, level: Level, *, sparsity: float, final_run: bool) -> None:
        """Record that a level is finished.

        Args:
            level: The level, whose metrics are a TrainOutput.
            sparsity: The fraction of what is pruned, weights or units, that the level's mask removes.
            final_run: Whether it is the final run.
        """
        output = level.metrics
        record = {"level": level.number, "sparsity": sparsity, "metrics": plain(output.metrics)}
        if final_run:
            record["final_run"] = True
        self.run.finished.append({**record, "steps": output.global_step, "loss": output.training_loss})
        self.write(lambda: (self.run.save(), self.run.clean(**self._kept)))

    def history(self) -> list[dict[str, Any]]:
        """Return one record for each finished level, as :attr:`LotteryTrainer.history` holds it."""
        kept = ("level", "sparsity", "metrics", "final_run")
        return [{key: record[key] for key in kept if key in record} for record in self.run.finished]

    def record_trained(self, number: int) -> None:
        """Record the files of a level's trained model, once all processes have written them."""
        self._trainer.accelerator.wait_for_everyone()
        self.write(lambda: self.run.record_trained(number))

    def files_beside(self, number: int) -> list[Path]:
        """Return the files that a checkpoint of a level, saved now, needs beside its own."""
        captured = not number and 0 < self._moment <= self._trainer.state.global_step
        return [self.run.moment] if captured else []

    def write(self, action: Callable[[], Any]) -> None:
        """Write on one process; the others wait, because they read what it writes."""
        if self._trainer.args.should_save:
            action()
        self._trainer.accelerator.wait_for_everyone()

    def _save_start(self, number: int, mask: Mask) -> None:
        """Make the present model the start of a level."""
        save_snapshot(self._trainer.network, self.run.handed_over, write=self._trainer.args.should_save)
        self.write(lambda: self.run.write_start(number, mask, self.run.handed_over))
