"""Kills at any moment of a search: between the events of its trainings, and between the writes of its folder."""

from contextlib import contextmanager
from functools import wraps

import pytest
from transformers import TrainerCallback

from hf_lottery.hf.trainers.run_folder import RunFolder
from hf_lottery.hf.trainers.search_on_disk import SearchOnDisk

EVENTS = ("epoch_begin", "substep_end", "pre_optimizer_step", "step_end", "save", "evaluate", "epoch_end", "train_end")
WRITES = ((SearchOnDisk, "hand_over"), (SearchOnDisk, "record"), (SearchOnDisk, "record_trained"), (RunFolder, "save"))


class KilledHere(BaseException):
    """Ends a search as a signal would: no code of the search catches it."""


class Moments:
    """Lists the moments of a search, and kills it at one of them.

    Args:
        kill: The moment, or None.
    """

    def __init__(self, kill=None):
        self.kill, self.seen = kill, []

    def reach(self, name):
        self.seen.append(name)
        if len(self.seen) - 1 == self.kill:
            raise KilledHere(name)

    def callback(self):
        """Return a callback that reaches a moment at every event."""

        def event(name):
            def on_event(_, args, state, control, **kwargs):
                self.reach(f"{args.output_dir[-8:]} {name} {state.global_step}")

            return on_event

        return type("Events", (TrainerCallback,), {f"on_{name}": event(name) for name in EVENTS})()

    @contextmanager
    def watched(self):
        """Reach a moment before and after every write of a search's folder."""
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in WRITES:
                patch.setattr(owner, name, self._around(getattr(owner, name), name))
            yield

    def _around(self, function, name):
        @wraps(function)
        def call(*args, **kwargs):
            self.reach(f"before {name}")
            result = function(*args, **kwargs)
            self.reach(f"after {name}")
            return result

        return call
