"""ExactResume: a Trainer whose resumed training takes the same steps as one that was never interrupted.

The Trainer of transformers 5.23 counts epochs and steps from the global step alone. So it trains one step too many from
a checkpoint at the last step, leaves out the evaluation at the end of an epoch if the checkpoint was saved just before,
and loses its place in a stream. Here every checkpoint says where training stood, and the files it consists of.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import safe_globals

from .checkpoints import (
    RECORD_NAME,
    Place,
    best_beside,
    check_checkpoint,
    check_unrecorded,
    checkpoints_in,
    last_whole,
    read_place,
    record_checkpoint,
)
from .main_process import on_main

logger = logging.getLogger(__name__)


class _EpochEnd(TrainerCallback):
    """Notes that the end of an epoch was reached."""

    reached = False

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.reached = False

    def on_epoch_end(self, args, state, control, **kwargs):
        self.reached = True


class ExactResume(Trainer):
    """A Trainer that records its checkpoints, and goes on from them as if it had not been interrupted.

    A checkpoint whose files are missing or damaged is refused. With ``resume_from_checkpoint=True`` the newest whole
    one is used. Checkpoints of other Trainers have no record; they are accepted with a warning.
    """

    # Whether a resume restores callbacks such as early stopping, and does not go on where one of them had stopped.
    # By default both are as in the Trainer, where a callback may stop a training that is to be resumed later.
    _keeps_stops = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._epoch_end = _EpochEnd()
        self.add_callback(self._epoch_end)
        self._epoch, self._epoch_began_at, self._shuffled_from = 0, 0, random_state()
        self._resumed: Place | None = None

    @property
    def layout(self) -> str:
        """The layout in which checkpoints of this launch store the optimizer's state."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        return "whole" if plugin is None else plugin.state_dict_type.name

    def find_checkpoint(self, given: str | Path | bool | None) -> str | None:
        """Return the checkpoint to resume from, whose files are whole.

        Every process must call this.

        Args:
            given: A checkpoint, or True for the newest one in ``args.output_dir``.

        Raises:
            ValueError: A file of the given checkpoint is missing or damaged, or there is no whole one.
        """
        return on_main(lambda: self._find(given), main=self.is_world_process_zero()) if given else None

    def last_whole_checkpoint(self, folder: Path) -> str | None:
        """Return the newest checkpoint in a folder that this launch can resume from. Every process must call this."""

        def find() -> str | None:
            found = last_whole(folder, layout=self.layout, with_best=self.args.load_best_model_at_end)
            return None if found is None else str(found)

        return on_main(find, main=self.is_world_process_zero())

    def _find(self, given: str | Path | bool) -> str:
        asked = {"layout": self.layout, "with_best": self.args.load_best_model_at_end}
        if given is not True:
            checkpoint = Path(str(given))
            if (checkpoint / RECORD_NAME).exists():
                check_checkpoint(checkpoint, **asked)
            else:
                check_unrecorded(checkpoint)
            return str(checkpoint)
        folder = Path(str(self.args.output_dir))
        found = checkpoints_in(folder)
        if found and not any((checkpoint / RECORD_NAME).exists() for checkpoint in found):
            check_unrecorded(found[0])
            return str(found[0])
        if (whole := last_whole(folder, **asked)) is None:
            raise ValueError(
                f"there must be a whole checkpoint to resume from; received {folder}, with {len(found)} that are cut "
                "off or damaged. Restore one from a copy, or train anew."
            )
        return str(whole)

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        """Put the Trainer where the checkpoint was saved."""
        counted = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._resumed = None
        if resume_from_checkpoint is None:
            return counted
        self._find_best_again(Path(resume_from_checkpoint))
        if self._keeps_stops:
            self._restore_callbacks()
        place, step = read_place(Path(resume_from_checkpoint)), self.state.global_step
        per_epoch, per_step = num_update_steps_per_epoch, self.args.gradient_accumulation_steps
        if place is None:
            if step < max_steps:
                return counted
            place = Place(max((step - 1) // per_epoch, 0), 0, True, False, True, self.args.world_size, self.layout)
        if place.processes != self.args.world_size:
            logger.warning(
                "%s was saved by %d processes, and training goes on with %d: random numbers, as of dropout, will be "
                "others than without the interruption.", resume_from_checkpoint, place.processes, self.args.world_size
            )  # fmt: skip
        stops = step >= max_steps or (place.training_stops and self._keeps_stops)
        stops = stops or (place.ended and place.epoch + 1 >= num_train_epochs)
        if not stops and place.ended:
            return place.epoch + 1, 0
        if stops or place.epoch_stops or place.steps >= per_epoch:
            self._resumed = Place(**{**vars(place), "training_stops": stops})
        return place.epoch, 0 if self.args.ignore_data_skip else place.steps * per_step

    def _find_best_again(self, checkpoint: Path) -> None:
        """Look for the best checkpoint beside this one, because the folder may have been moved or copied."""
        if beside := best_beside(checkpoint):
            self.state.best_model_checkpoint = str(beside) if beside.is_dir() else None

    def _restore_callbacks(self) -> None:
        """Give callbacks the state that they had when the checkpoint was saved."""
        for name, stored in cast(dict[str, Any], self.state.stateful_callbacks).items():
            same = [callback for callback in self.callback_handler.callbacks if type(callback).__name__ == name]
            newest = (stored if isinstance(stored, list) else [stored])[-len(same) :]  # a list grows with every save
            for callback, values in zip(same, newest, strict=False):
                for attribute, value in values["attributes"].items():
                    setattr(callback, attribute, value)

    def _run_epoch(self, *args, **kwargs) -> None:
        """Run an epoch, or what was left of it when the checkpoint was saved."""
        resumed, self._resumed = self._resumed, None
        first, checkpoint = kwargs["epoch"] == kwargs["epochs_trained"], kwargs["resume_from_checkpoint"]
        skipped = kwargs["steps_trained_in_current_epoch"] // self.args.gradient_accumulation_steps if first else 0
        self._epoch, self._epoch_began_at = kwargs["epoch"], self.state.global_step - skipped
        if resumed is not None:
            return self._end_epoch(resumed, **kwargs)
        if first and checkpoint is not None:
            file = self._shuffle_file(checkpoint)
            if not skipped:
                self._load_rng_state(checkpoint)
            elif file.exists():
                set_random_state(file)  # from which the epoch was shuffled; the present state is loaded after it
        self._shuffled_from = random_state()
        super()._run_epoch(*args, **kwargs)

    def _end_epoch(self, resumed: Place, **kwargs) -> None:
        """Do what comes after the steps of an epoch, unless it was done."""
        self._load_rng_state(kwargs["resume_from_checkpoint"])
        self.control.should_training_stop = resumed.training_stops
        if not resumed.ended:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            asked = [kwargs[name] for name in ("model", "trial", "epoch", "ignore_keys_for_eval", "start_time")]
            self._maybe_log_save_evaluate(self._tr_loss, None, *asked)

    def _save_checkpoint(self, model, trial) -> None:
        """Save a checkpoint as the Trainer does, and then its record."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / RECORD_NAME).unlink(missing_ok=True)  # of an earlier save, which is overwritten
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save and not self.args.save_only_model:
            record_checkpoint(folder, self._place(), beside=self._files_beside())

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state as the Trainer does, and the one that the epoch was shuffled from."""
        super()._save_rng_state(output_dir)
        torch.save(self._shuffled_from, self._shuffle_file(output_dir))

    def _shuffle_file(self, checkpoint: str | Path) -> Path:
        return Path(checkpoint) / f"rng_epoch_{self.args.process_index}.pth"

    def _files_beside(self) -> list[Path]:
        """Return files outside a checkpoint without which it could not be resumed from."""
        return []

    def _place(self) -> Place:
        return Place(
            epoch=self._epoch,
            steps=self.state.global_step - self._epoch_began_at,
            ended=self._epoch_end.reached,
            epoch_stops=self.control.should_epoch_stop,
            training_stops=self.control.should_training_stop,
            processes=self.args.world_size,
            layout=self.layout,
        )


def random_state() -> dict[str, Any]:
    """Return the state of the random generators of the CPU."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}


def set_random_state(file: Path) -> None:
    """Set the random generators of the CPU to a state that was saved in a file."""
    with safe_globals():
        state = torch.load(file, weights_only=True)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
