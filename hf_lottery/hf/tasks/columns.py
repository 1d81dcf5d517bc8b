"""Columns and rows of data that ``datasets`` loads: which column holds what, classes as numbers, rows to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .data import DataArguments

_USUAL_LABELS = ("label", "labels", "fine_label", "target", "class")


def find_column(asked: str | None, kind: str, splits: Sequence[Any], types: Sequence[str], usual: Sequence[str]) -> str:
    """Find the column that holds images, labels or text.

    It is the column asked for; else the only one of a type; else one with a usual name.

    Args:
        asked: The column that the user named, if any.
        kind: "image", "label" or "text", for the error message.
        splits: The splits of a data set, all of which must have the column.
        types: Names of the types that such a column has.
        usual: Names that such a column often has, the best first.

    Raises:
        ValueError: There is no such column.
    """
    there = [name for name in splits[0].column_names if all(name in split.column_names for split in splits)]
    typed = [name for name in there if _type_name(splits[0].features[name]) in types]
    found = asked or (typed[0] if len(typed) == 1 else next((name for name in usual if name in (typed or there)), None))
    if found is None or found not in there:
        raise ValueError(
            f"{kind}_column_name must be a column of every split; received {asked!r}. There are: {', '.join(there)}."
        )
    return found


def _type_name(feature: Any) -> str:
    return getattr(feature, "dtype", "") if type(feature).__name__ == "Value" else type(feature).__name__


def read_labels(args: DataArguments, train: Any, held_out: Any) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Read class names, and the class number of every sample of the two splits.

    Raises:
        ValueError: There is no column of labels, or the test split has labels that the train split does not have.
    """
    column = find_column(args.label_column_name, "label", (train, held_out), ("ClassLabel",), _USUAL_LABELS)
    classes = getattr(train.features[column], "names", None)
    values = sorted(set(train.unique(column)) - {None}) if classes is None else range(len(classes))
    numbers = {value: number for number, value in enumerate(values)}
    if unknown := (set(train.unique(column)) | set(held_out.unique(column))) - numbers.keys():
        raise ValueError(
            f"labels in column {column!r} must be classes of the train split; received {unknown.pop()!r}. "
            "Test splits with hidden labels have -1: choose another --dataset_test_split."
        )
    train_labels, labels = (torch.tensor([numbers[value] for value in split[column]]) for split in (train, held_out))
    return tuple(map(str, values if classes is None else classes)), train_labels, labels


def draw_rows(samples: Any, count: int | None, seed: int) -> list[int]:
    """Choose the rows to use.

    All rows keep their order. Fewer are in an order that the seed draws, because folders are often sorted by class.
    """
    if count is None or count >= len(samples):
        return list(range(len(samples)))
    return torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:count].tolist()
