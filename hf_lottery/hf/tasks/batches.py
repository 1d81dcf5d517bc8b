"""Batches for matching, recalibration and barriers: each process gets its share of what one process would get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Trainer

from ..trainers.sparse_trainer import changed


def training_batches(trainer: Trainer, samples: int, *, labels: bool = False) -> list[dict[str, Any]]:
    """Make batches of the first training samples: this process's share of them.

    The order is that of an epoch of training with the Trainer's seed, whatever the number of processes.

    Args:
        trainer: Has the data, the collator and the batch size.
        samples: How many samples all processes together take.
        labels: Whether the batches have labels too.
    """
    rows, size = _order(trainer)[:samples], trainer.args.per_device_train_batch_size
    batches = _share(trainer, trainer.train_dataset, rows, size)
    return [batch if labels else without_labels(batch) for batch in batches]


def example_batch(trainer: Trainer) -> dict[str, Any]:
    """Make the first of the training batches, the same on every process."""
    rows = _order(trainer)[: trainer.args.per_device_train_batch_size]
    return without_labels(_batch(trainer, _loader(trainer, trainer.train_dataset), rows))


def evaluation_batches(trainer: Trainer) -> Iterator[dict[str, Any]]:
    """Make batches of the test samples, with labels: this process's share of them."""
    dataset: Any = trainer.eval_dataset
    return _share(trainer, dataset, range(len(dataset)), trainer.args.per_device_eval_batch_size)


def without_labels(batch: dict[str, Any]) -> dict[str, Any]:
    """Leave the labels out of a batch, so that the network computes logits alone."""
    return {name: value for name, value in batch.items() if name != "labels"}


def _order(trainer: Trainer) -> list[int]:
    args, dataset = trainer.args, trainer.train_dataset
    seed = args.seed if args.data_seed is None else args.data_seed
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore


def _share(trainer: Trainer, dataset: Any, rows: Sequence[int], size: int) -> Iterator[dict[str, Any]]:
    """Deal the batches out in turn; the last processes may get one batch less."""
    loader = _loader(trainer, dataset)
    for start in range(0, len(rows), size)[trainer.args.process_index :: trainer.args.world_size]:
        yield _batch(trainer, loader, rows[start : start + size])


def _loader(trainer: Trainer, dataset: Any) -> Any:
    """Make a loader that knows how the Trainer reads and collates a data set; that of evaluation draws no numbers."""
    # The Trainer keeps a loader with persistent workers, and hands it out again for whatever data set it is asked.
    with changed(trainer.args, dataloader_persistent_workers=False):
        return trainer.get_eval_dataloader(dataset)


def _batch(trainer: Trainer, loader: Any, rows: Sequence[int]) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trainer.args.seed + rows[0])  # augmentation does not depend on the batches before
        batch = loader.collate_fn(read_samples(loader.dataset, rows))
    return trainer._prepare_inputs(batch)


def read_samples(dataset: Any, rows: Sequence[int]) -> Sequence[Any]:
    """Read samples as torch's ``DataLoader`` does: all at once, where the data set can.

    Args:
        dataset: The data set.
        rows: The numbers of the samples.
    """
    at_once: Any = getattr(dataset, "__getitems__", None)
    return [dataset[row] for row in rows] if at_once is None else at_once(list(rows))
