"""The data a recipe trains on: three small data sets that need no network, and whatever ``datasets`` loads.

Built in are ``digits``, ``fashion_mnist`` and ``mnist1d``, see built_in.py.

Example:
    >>> data = load_data(DataArguments(dataset_name="digits"), "image-classification", seed=0)
    >>> data.num_labels, data.image_size, len(data.train), len(data.eval)
    (10, 8, 1437, 360)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, AutoTokenizer, DataCollatorWithPadding, default_data_collator

from .built_in import BUILT_IN, require
from .models import height_and_width

logger = logging.getLogger(__name__)

TASKS = ("image-classification", "text-classification", "causal-lm")
TEXT = ("string", "large_string"), ("text", "sentence", "content")


@dataclass
class DataArguments:
    """What a recipe trains on, as command line options.

    Raises:
        ValueError: A number of samples, ``max_length`` or ``block_size`` is below 1.
    """

    dataset_name: str = field(
        default="digits",
        metadata={
            "help": "digits, fashion_mnist, mnist1d, a Hub id, or a local folder: images in one folder per class; "
            "csv, json or parquet files; or what `save_to_disk` wrote."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    dataset_dir: str = field(
        default="/usr/share/datasets/fashion-mnist",
        metadata={"help": "fashion_mnist: folder with its four idx files, plain or .gz."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(
        default=None,
        metadata={"help": "Split to evaluate on. Default: test, else validation, else 15 %% cut off the train split."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many, drawn at random."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many, drawn at random."})
    split_seed: int = field(
        default=0,
        metadata={"help": "Draws those, and the cut without a test split. Networks to compare must share it."},
    )
    image_column_name: str | None = field(default=None, metadata={"help": "Column of images. Default: found."})
    label_column_name: str | None = field(default=None, metadata={"help": "Column of labels. Default: found."})
    text_column_name: str | None = field(default=None, metadata={"help": "Column of text. Default: found."})
    max_length: int | None = field(
        default=None, metadata={"help": "Text classification: cut texts to this many tokens. Default: the tokenizer's."}
    )
    block_size: int | None = field(
        default=None,
        metadata={"help": "Causal LM: tokens in a sample. Default: the tokenizer's, at most 1024."},
    )
    augment: bool = field(
        default=False, metadata={"help": "Images: shift by up to 1/8 of the size and flip left-right, at random."}
    )

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples", "max_length", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; received {value}. Leave it out for the default.")


@dataclass
class Data:
    """What ``load_data`` returns, ready for a ``Trainer``.

    Args:
        train: What to train on; items are dicts of what the model's ``forward`` takes.
        eval: What to evaluate on.
        data_collator: Items -> batch.
        processing_class: Tokenizer or image processor, to be saved with the model; None if there is none.
        label_names: Name of each class; empty for a causal language model.
        image_size: Side of a square image, or (height, width), in pixels; None for text.
        num_channels: 1 or 3; None for text.
        pad_token_id: Token the collator pads with; None for images and causal language models.
    """

    train: Any
    eval: Any
    data_collator: Callable[[list[Any]], dict[str, Any]] = default_data_collator
    processing_class: Any = None
    label_names: tuple[str, ...] = ()
    image_size: int | tuple[int, int] | None = None
    num_channels: int | None = None
    pad_token_id: int | None = None

    @property
    def num_labels(self) -> int:
        """Number of classes; 0 for a causal language model."""
        return len(self.label_names)

    @property
    def config_kwargs(self) -> dict[str, Any]:
        """What the data decide of a model's config: ``LeNetConfig(**data.config_kwargs)``."""
        kwargs: dict[str, Any] = {}
        if self.label_names:
            kwargs["id2label"] = dict(enumerate(self.label_names))
            kwargs["label2id"] = {name: i for i, name in enumerate(self.label_names)}
        if self.processing_class is None:  # an image processor follows its model's sizes, it does not set them
            kwargs |= {"image_size": self.image_size, "num_channels": self.num_channels}
        if self.pad_token_id is not None:
            kwargs["pad_token_id"] = self.pad_token_id
        return kwargs


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


class _DecodedColumn:
    """The image column of a data set: read, decoded and prepared one image at a time."""

    def __init__(self, dataset: Any, column: str, prepare: Callable[[Any], Tensor]):
        self.dataset, self.column, self.prepare = dataset, column, prepare

    def __getitem__(self, index: int) -> Tensor:
        return self.prepare(self.dataset[int(index)][self.column])


def shift_and_flip(image: Tensor) -> Tensor:
    """Shift an image [channels, height, width] by up to 1/8 of its size, and flip it left-right half of the time.

    This is padding followed by a random crop. What comes in at an edge repeats the edge, since 0 is not black in a
    normalised image. Random numbers come from torch's global generator, which data loader workers seed differently.
    """
    height, width = image.shape[-2:]
    down, right = (int(torch.randint(-(side // 8), side // 8 + 1, ())) for side in (height, width))
    rows = (torch.arange(height) - down).clamp_(0, height - 1)
    columns = (torch.arange(width) - right).clamp_(0, width - 1)
    if torch.rand(()) < 0.5:
        columns = columns.flip(0)
    return image[:, rows[:, None], columns]


def load_data(
    args: DataArguments,
    task: str,
    *,
    seed: int,
    model_name_or_path: str | None = None,
    from_pretrained: Mapping[str, Any] | None = None,
    image_size: int | Sequence[int] | None = None,
    num_channels: int | None = None,
) -> Data:
    """Load, split and preprocess what a recipe trains on.

    Args:
        args: What to load.
        task: "image-classification", "text-classification" or "causal-lm".
        seed: Draws the samples of ``max_*_samples`` and, without a test split, the 15 % to evaluate on. Networks that
            are to be compared or aligned need the same one, whatever their own seeds.
        model_name_or_path: Where the tokenizer (required for text) or image processor comes from.
        from_pretrained: Further arguments for loading it, such as ``revision`` and ``trust_remote_code``.
        image_size: Without an image processor, size to bring images to, in pixels. Default: that of the first image.
            Built-in images have their own size, and this is checked.
        num_channels: Likewise, 1 or 3.

    Raises:
        ValueError: An unknown task, data set, split or column, labels that do not fit, or options that contradict.
        FileNotFoundError: A folder or file is missing.
        ModuleNotFoundError: A package of ``hf-lottery[recipes]`` is missing.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; received {task!r}. Choose one of them.")
    if task != "image-classification" and (args.augment or args.dataset_name in BUILT_IN):
        culprit = "augment" if args.augment else f"data set {args.dataset_name!r}"
        raise ValueError(f"{culprit} must go with image-classification; received task {task!r}. Change one of them.")
    if args.dataset_name in BUILT_IN:
        return _built_in(args, seed, image_size, num_channels)
    train, held_out = _load_splits(args, seed)
    if task == "image-classification":
        processor = _image_processor(model_name_or_path, from_pretrained or {})
        return _image_classification(args, train, held_out, seed, processor, image_size, num_channels)
    if model_name_or_path is None:
        raise ValueError(f"{task} must have a tokenizer; received model_name_or_path=None. Name a model or its folder.")
    tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **(from_pretrained or {}))
    prepare = _text_classification if task == "text-classification" else _causal_lm
    return prepare(args, train, held_out, seed, tokenizer)


def _built_in(args: DataArguments, seed: int, image_size: int | Sequence[int] | None, num_channels: int | None) -> Data:
    (images, labels, test_images, test_labels), names = BUILT_IN[args.dataset_name](args.dataset_dir)
    size = tuple(images.shape[2:])
    if image_size is not None and height_and_width(image_size) != size:
        hint = f"Leave it out, or give the model image_size {_simplest(size)}."
        raise ValueError(f"image_size of {args.dataset_name} must be {list(size)}; received {image_size}. {hint}")
    if num_channels not in (None, 1):
        raise ValueError(f"num_channels of {args.dataset_name} must be 1; received {num_channels}. Leave it out.")
    train, test = _draw(labels, args.max_train_samples, seed), _draw(test_labels, args.max_eval_samples, seed)
    return Data(
        train=ImageDataset(images[train], labels[train], augment=args.augment),
        eval=ImageDataset(test_images[test], test_labels[test]),
        label_names=names,
        image_size=_simplest(size),
        num_channels=1,
    )


# What `datasets` loads


def _load_splits(args: DataArguments, seed: int) -> tuple[Any, Any]:
    splits = _load(args)
    train, test = args.dataset_train_split, args.dataset_test_split
    test = test or next((name for name in ("test", "validation") if name in splits and name != train), None)
    for option, name in (("dataset_train_split", train), ("dataset_test_split", test)):
        if name is not None and name not in splits:
            there = ", ".join(splits)
            raise ValueError(f"{option} must be a split of {args.dataset_name}; received {name!r}. It has: {there}.")
    if test is not None:
        return splits[train], splits[test]
    parts = splits[train].train_test_split(test_size=0.15, seed=seed)
    counts = f"{len(parts['test'])} of {len(splits[train])}"
    logger.warning("%s has no test split: evaluating on %s training samples, seed %d", args.dataset_name, counts, seed)
    return parts["train"], parts["test"]


def _load(args: DataArguments) -> Mapping[str, Any]:
    datasets = require("datasets")
    name, folder = args.dataset_name, Path(args.dataset_name).expanduser()
    if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise FileNotFoundError(f"dataset_name must be a folder that exists; received {name!r}. Check the path.")
    try:
        if any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder) if folder.is_dir() else name, args.dataset_config)
    except OSError as error:  # not there, no network, nothing to read in it
        raise ValueError(
            f"dataset_name must be {', '.join(BUILT_IN)}, a folder with data, or a Hub id; received {name!r}. {error}"
        ) from error
    return loaded if isinstance(loaded, Mapping) else {args.dataset_train_split: loaded}


def _image_processor(model_name_or_path: str | None, from_pretrained: Mapping[str, Any]) -> Any:
    if model_name_or_path is None:
        return None
    try:
        return AutoImageProcessor.from_pretrained(model_name_or_path, **from_pretrained)
    except (OSError, ValueError):  # networks such as those of models.py are saved without one
        logger.warning("%s has no image processor: images are resized and scaled to [-1, 1]", model_name_or_path)
        return None


def _image_classification(
    args: DataArguments,
    train: Any,
    held_out: Any,
    seed: int,
    processor: Any,
    image_size: int | Sequence[int] | None,
    num_channels: int | None,
) -> Data:
    column = _find_column(args.image_column_name, "image", (train, held_out), ("Image",), ("image", "img"))
    names, labels, test_labels = _read_labels(args, train, held_out)
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
    train_rows, rows = _draw(labels, args.max_train_samples, seed), _draw(test_labels, args.max_eval_samples, seed)
    channels, *size = prepare(first).shape
    return Data(
        train=ImageDataset(_DecodedColumn(train.select(train_rows), column, prepare), labels[train_rows], args.augment),
        eval=ImageDataset(_DecodedColumn(held_out.select(rows), column, prepare), test_labels[rows]),
        processing_class=processor,
        label_names=names,
        image_size=_simplest(size),
        num_channels=channels,
    )


def _processed(image: Any, *, processor: Any) -> Tensor:
    return processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]


def _resized(image: Any, *, size: tuple[int, int], num_channels: int) -> Tensor:
    image = image.convert("L" if num_channels == 1 else "RGB").resize(size[::-1])
    pixels = torch.tensor(np.asarray(image, dtype=np.float32)).view(*size, num_channels)
    return (pixels / 127.5 - 1).permute(2, 0, 1).contiguous()


def _text_classification(args: DataArguments, train: Any, held_out: Any, seed: int, tokenizer: Any) -> Data:
    column = _find_column(args.text_column_name, "text", (train, held_out), *TEXT)
    names, *labels = _read_labels(args, train, held_out)
    pad_token_id = None
    if tokenizer.pad_token is None:
        logger.warning("the tokenizer has no padding token: padding with its end of text, %r", tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
        pad_token_id = tokenizer.pad_token_id

    def encode(batch: Any) -> Any:
        return tokenizer(batch[column], truncation=True, max_length=args.max_length)

    encoded = []
    for split, targets, count in zip(
        (train, held_out), labels, (args.max_train_samples, args.max_eval_samples), strict=True
    ):
        rows = _draw(targets, count, seed)
        tokens = split.select(rows).map(encode, batched=True, remove_columns=split.column_names)
        encoded.append(tokens.add_column("labels", targets[rows].tolist()))
    collator = DataCollatorWithPadding(tokenizer)
    return Data(encoded[0], encoded[1], collator, tokenizer, label_names=names, pad_token_id=pad_token_id)


def _causal_lm(args: DataArguments, train: Any, held_out: Any, seed: int, tokenizer: Any) -> Data:
    column = _find_column(args.text_column_name, "text", (train, held_out), *TEXT)
    block = args.block_size or min(tokenizer.model_max_length, 1024)

    def encode(batch: Any) -> dict[str, list[list[int]]]:
        tokens = list(chain.from_iterable(tokenizer(batch[column])["input_ids"]))
        blocks = [tokens[at : at + block] for at in range(0, len(tokens) - block + 1, block)]
        return {"input_ids": blocks, "attention_mask": [[1] * block] * len(blocks), "labels": blocks}

    encoded = []
    for split, count in ((train, args.max_train_samples), (held_out, args.max_eval_samples)):
        # Texts are joined a thousand at a time; the end of each thousand that fills no block is dropped.
        blocks = split.map(encode, batched=True, remove_columns=split.column_names)
        if not len(blocks):
            texts = f"{len(split)} texts"
            raise ValueError(f"a split must fill a block of {block} tokens; received {texts}. Lower --block_size.")
        encoded.append(blocks.select(_draw(blocks, count, seed)))
    return Data(encoded[0], encoded[1], default_data_collator, tokenizer)


def _find_column(
    asked: str | None, kind: str, splits: Sequence[Any], types: tuple[str, ...], usual: tuple[str, ...]
) -> str:
    """The column asked for; else the only one of a type, else one with a usual name."""
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


def _read_labels(args: DataArguments, train: Any, held_out: Any) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Class names, and the class number of every sample of the two splits."""
    usual = ("label", "labels", "fine_label", "target", "class")
    column = _find_column(args.label_column_name, "label", (train, held_out), ("ClassLabel",), usual)
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


# Small things


def _draw(samples: Any, count: int | None, seed: int) -> list[int]:
    """Rows to use: all in order, or ``count`` in an order drawn by the seed, since folders are sorted by class."""
    if count is None or count >= len(samples):
        return list(range(len(samples)))
    return torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[:count].tolist()


def _simplest(size: Sequence[int]) -> int | tuple[int, int]:
    height, width = size
    return height if height == width else (height, width)
