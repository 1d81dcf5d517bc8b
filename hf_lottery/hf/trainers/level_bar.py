"""LevelBar: the progress bar of a search, which shows the level."""

from __future__ import annotations

from collections.abc import Callable

from transformers import ProgressCallback


class LevelBar(ProgressCallback):
    """The Trainer's progress bar with a text in front of it.

    Args:
        describe: Function that returns the text when training begins, such as ``level 3/8, sparsity 0.488``.
    """

    def __init__(self, describe: Callable[[], str]):
        super().__init__()
        self.describe = describe

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.describe())
