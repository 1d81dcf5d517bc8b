"""Images for a classifier: the data set of images and labels, augmentation, and preparation for a network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoImageProcessor

from ..hub.transfer import fetch
from ..trainers.ready_batch import ReadyBatch
from .columns import draw_rows, find_column, read_labels
from .data import Data, DataArguments
from .paper_networks import height_and_width

logger = logging.getLogger(__name__)

# Networks such as those of paper_networks.py are saved without them.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


class ImageDataset(Dataset):
    """Images and labels as ``{"pixel_values", "labels"}``.

    Args:
        images: Floats of shape [n, channels, height, width], or anything indexable that gives such images.
        labels: Class numbers of shape [n].
        augment: Shift and flip each image at random whenever it is read, see ``shift_and_flip``.
    """

    def __init__(self, images: Tensor | Sequence[Tensor] | _DecodedColumn, labels: Tensor, augment: bool = False):
        self.images, self.labels, self.augment = images, labels, augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index]
        return {"pixel_values": shift_and_flip(image) if self.augment else image, "labels": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> Sequence[dict[str, Tensor]]:
        """Read the samples of a batch, all at once if the images are one tensor."""
        if not isinstance(self.images, Tensor):
            return [self[index] for index in indices]
        images = self.images[indices]
        return ReadyBatch({
            "pixel_values": shift_and_flip(images) if self.augment else images, "labels": self.labels[indices]
        })  # fmt: skip


class _DecodedColumn:
    """The image column of a data set: each image is read, decoded and prepared when it is asked for."""

    def __init__(self, dataset: Any, column: str, prepare: Callable[[Any], Tensor]):
        self.dataset, self.column, self.prepare = dataset, column, prepare

    def __getitem__(self, index: int) -> Tensor:
        return self.prepare(self.dataset[int(index)][self.column])


def shift_and_flip(images: Tensor) -> Tensor:
    """Shift images by up to 1/8 of their size, and flip them left-right half of the time, each at random.

    This is padding followed by a random crop. What comes in at an edge repeats the edge, since 0 is not black in a
    normalised image. Random numbers come from torch's global generator, which data loader workers seed differently.
    They are drawn image by image, so that a batch gets what its images would get one after the other.

    Args:
        images: One image [channels, height, width], or several [n, channels, height, width].
    """
    height, width = images.shape[-2:]
    count = images.shape[:-3].numel()
    moves = torch.tensor([_draw_move(height, width) for _ in range(count)])
    rows = (torch.arange(height) - moves[:, :1]).clamp_(0, height - 1)
    columns = (torch.arange(width) - moves[:, 1:2]).clamp_(0, width - 1)
    columns = torch.where(moves[:, 2:] == 1, columns.flip(1), columns)
    places = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, height * width)
    flat = images.reshape(count, -1, height * width)
    return flat.gather(2, places.expand(flat.shape)).view(images.shape)


def _draw_move(height: int, width: int) -> tuple[int, int, int]:
    """Draw how far an image moves down and right, and whether it is flipped."""
    down, right = (int(torch.randint(-(side // 8), side // 8 + 1, ())) for side in (height, width))
    return down, right, int(torch.rand(()) < 0.5)


def load_image_processor(model_name_or_path: str | None, from_pretrained: Mapping[str, Any]) -> Any:
    """Load the image processor of a model; None if there is none.

    Raises:
        HubError: The Hub cannot be reached, so it is not known whether there is one.
    """
    if model_name_or_path is None:
        return None
    folder = Path(model_name_or_path)
    if not folder.is_dir():
        where: dict[str, Any] = {key: from_pretrained[key] for key in ("revision", "token") if key in from_pretrained}
        folder = fetch(model_name_or_path, ("config.json",), optional=_PROCESSOR_FILES, **where)
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        logger.warning("%s has no image processor: images are resized and scaled to [-1, 1]", model_name_or_path)
        return None
    return AutoImageProcessor.from_pretrained(model_name_or_path, **from_pretrained, trust_remote_code=False)


def prepare_images(
    args: DataArguments,
    train: Any,
    held_out: Any,
    seed: int,
    *,
    processor: Any = None,
    image_size: int | Sequence[int] | None = None,
    num_channels: int | None = None,
) -> Data:
    """Prepare two splits of images for a classifier.

    Args:
        args: Columns, numbers of samples, augmentation.
        train: The split to train on.
        held_out: The split to evaluate on.
        seed: Draws the samples.
        processor: The image processor of the model. Without one, images are resized and scaled to [-1, 1].
        image_size: Without a processor, the size to bring images to. Default: that of the first image.
        num_channels: Without a processor, 1 or 3. Default: that of the first image.

    Raises:
        ValueError: A column is missing, or holds no images.
    """
    column = find_column(args.image_column_name, "image", (train, held_out), ("Image",), ("image", "img"))
    names, labels, test_labels = read_labels(args, train, held_out)
    first = train[0][column]
    if not hasattr(first, "convert"):
        received = type(first).__name__
        raise ValueError(f"image column {column!r} must hold images; received {received}. Name another column.")
    if processor is not None:
        prepare = partial(_processed, processor=processor)
    else:
        size = first.size[::-1] if image_size is None else height_and_width(image_size)
        channels = num_channels or (1 if first.mode in ("1", "L") else 3)
        prepare = partial(_resized, size=size, num_channels=channels)
    train_rows = draw_rows(labels, args.max_train_samples, seed)
    rows = draw_rows(test_labels, args.max_eval_samples, seed)
    channels, *size = prepare(first).shape
    return Data(
        train=ImageDataset(_DecodedColumn(train.select(train_rows), column, prepare), labels[train_rows], args.augment),
        eval=ImageDataset(_DecodedColumn(held_out.select(rows), column, prepare), test_labels[rows]),
        processing_class=processor,
        label_names=names,
        image_size=simplest_size(size),
        num_channels=channels,
    )


def _processed(image: Any, *, processor: Any) -> Tensor:
    return processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]


def _resized(image: Any, *, size: tuple[int, int], num_channels: int) -> Tensor:
    image = image.convert("L" if num_channels == 1 else "RGB").resize(size[::-1])
    pixels = torch.tensor(np.asarray(image, dtype=np.float32)).view(*size, num_channels)
    return (pixels / 127.5 - 1).permute(2, 0, 1).contiguous()


def simplest_size(size: Sequence[int]) -> int | tuple[int, int]:
    """An image size as a configuration writes it: the side of a square, or (height, width)."""
    height, width = size
    return height if height == width else (height, width)
