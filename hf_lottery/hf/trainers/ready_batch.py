"""ReadyBatch: samples that a data set read at once, for any collator, and as the batch that the default one makes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_RENAMED = {"label", "label_ids"}  # which the default collator hands to the model as labels


class ReadyBatch(Sequence):
    """What ``__getitems__`` of a data set may return: a sequence of samples whose batch is made already.

    torch's ``DataLoader`` asks a data set for all samples of a batch at once if it has ``__getitems__``. A collator
    sees the same samples as without it. :class:`~hf_lottery.hf.trainers.sparse_trainer.SparseTrainer` takes the batch
    as it is where the collator is the Trainer's default, which would stack the samples again.

    Args:
        columns: Name -> the values of all samples, [samples, ...], as ``default_data_collator`` would stack them.
    """

    def __init__(self, columns: Mapping[str, Tensor]):
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ReadyBatch({name: values[index] for name, values in self.columns.items()})
        if index >= len(self):
            raise IndexError(f"index must be below {len(self)}; received {index}.")  # which ends a loop
        return {name: values[index] for name, values in self.columns.items()}


@dataclass
class ReadyCollator:
    """A collator that takes a :class:`ReadyBatch` as it is, and leaves samples to another.

    Attributes:
        collate: Makes a batch of samples, like ``default_data_collator``.
        columns: Names of the columns that a batch may have; None for all.
    """

    collate: Callable[[Any], Any]
    columns: Collection[str] | None = None

    def __call__(self, samples: Any) -> Any:
        if not isinstance(samples, ReadyBatch) or samples.columns.keys() & _RENAMED:
            return self.collate(samples)
        keep = samples.columns if self.columns is None else self.columns
        return {name: values for name, values in samples.columns.items() if name in keep}
