"""Load the data of a task: three built-in data sets that need no network, and whatever ``datasets`` loads.

The built-in data sets are ``digits``, ``fashion_mnist`` and ``mnist1d``, see built_in.py.

Example:
    >>> data = load_data(DataArguments(dataset_name="digits"), "image-classification", seed=0)
    >>> data.num_labels, data.image_size, len(data.train), len(data.eval)
    (10, 8, 1437, 360)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from transformers import AutoTokenizer, PreTrainedConfig

from .built_in import BUILT_IN, require
from .columns import draw_rows
from .data import Data, DataArguments
from .images import ImageDataset, load_image_processor, prepare_images, simplest_size
from .models import AUTO_MODELS, ModelArguments
from .paper_networks import height_and_width
from .sources import check_data_set, check_id
from .texts import prepare_blocks, prepare_labelled_texts

logger = logging.getLogger(__name__)

_SPLITS = ("dataset_config", "dataset_train_split", "dataset_test_split")
# The options that only some data have: those of a task, or a built-in data set.
_OPTIONS = {
    "image-classification": (*_SPLITS, "image_column_name", "label_column_name", "augment"),
    "text-classification": (*_SPLITS, "text_column_name", "label_column_name", "max_length"),
    "causal-lm": (*_SPLITS, "text_column_name", "block_size"),
    **dict.fromkeys(BUILT_IN, ("average_pixels", "augment")),
    "fashion_mnist": ("average_pixels", "augment", "dataset_dir"),
}


def load_task_data(model_args: ModelArguments, data_args: DataArguments, config: PreTrainedConfig) -> Data:
    """Load the data of a task as a model takes them.

    A built-in data set decides the image size of a network without weights; in every other case the model decides.

    Args:
        model_args: The model and its task.
        data_args: What to load.
        config: The configuration of the model.
    """
    model_decides = model_args.model_name_or_path is not None or data_args.dataset_name not in BUILT_IN
    tokenizer = None if model_args.task == "image-classification" else model_args.config_name
    return load_data(
        data_args,
        model_args.task,
        seed=data_args.split_seed,
        model_name_or_path=model_args.processing_name or model_args.model_name_or_path or tokenizer,
        from_pretrained={} if model_args.processing_name else {"revision": model_args.model_revision},
        image_size=getattr(config, "image_size", None) if model_decides else None,
        num_channels=getattr(config, "num_channels", None) if model_decides else None,
    )


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
        from_pretrained: Further arguments for loading it, such as ``revision``. No code of a repository is run.
        image_size: Without an image processor, the size to bring images to, in pixels. Default: that of the first
            image. Built-in images have their own size, and this is checked.
        num_channels: Without an image processor, 1 or 3. Default: that of the first image. Built-in images have 1, and
            this is checked.

    Raises:
        ValueError: An unknown task, data set, split or column, labels that do not fit, or options that contradict.
        FileNotFoundError: A folder or file is missing.
        ModuleNotFoundError: A package of ``hf-lottery[recipes]`` is missing.
    """
    if task not in AUTO_MODELS:
        raise ValueError(f"task must be one of {', '.join(AUTO_MODELS)}; received {task!r}. Choose one of them.")
    if task != "image-classification" and args.dataset_name in BUILT_IN:
        culprit = f"data set {args.dataset_name!r}"
        raise ValueError(f"{culprit} must go with image-classification; received task {task!r}. Change one of them.")
    _check_options(args, args.dataset_name if args.dataset_name in BUILT_IN else task)
    if args.dataset_name in BUILT_IN:
        return _load_built_in(args, seed, image_size, num_channels)
    from_pretrained = dict(from_pretrained or {})
    if from_pretrained.pop("trust_remote_code", False):
        raise ValueError("trust_remote_code must be left out; received true. No code of a repository is run.")
    train, held_out = _load_splits(args, seed)
    if task == "image-classification":
        processor = load_image_processor(model_name_or_path, from_pretrained)
        sizes = {"image_size": image_size, "num_channels": num_channels}
        return prepare_images(args, train, held_out, seed, processor=processor, **sizes)
    if model_name_or_path is None:
        raise ValueError(f"{task} must have a tokenizer; received model_name_or_path=None. Name a model or its folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, **from_pretrained, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, OSError) and not Path(model_name_or_path).exists():
            raise  # the Hub may be out of reach
        raise ValueError(
            f"{task} must have a tokenizer; received {model_name_or_path!r}, which holds none that can be read: "
            f"{error}. Name a folder or repository with a tokenizer."
        ) from error
    prepare = prepare_labelled_texts if task == "text-classification" else prepare_blocks
    return prepare(args, train, held_out, seed, tokenizer)


def _check_options(args: DataArguments, kind: str) -> None:
    """Refuse an option that nothing would read."""
    for field in fields(args):
        value, kinds = getattr(args, field.name), [kind for kind, names in _OPTIONS.items() if field.name in names]
        if kinds and kind not in kinds and value != field.default:
            raise ValueError(
                f"{field.name} must go with {', '.join(kinds)}; received {value!r} with {kind}. Leave it out."
            )


def _load_built_in(
    args: DataArguments, seed: int, image_size: int | Sequence[int] | None, num_channels: int | None
) -> Data:
    (images, labels, test_images, test_labels), names = BUILT_IN[args.dataset_name](args.dataset_dir)
    if (side := args.average_pixels) > 1:
        if any(length % side for length in images.shape[2:]):
            received = f"{side} for images of {list(images.shape[2:])}"
            raise ValueError(f"average_pixels must divide the size; received {received}. Choose a divisor.")
        images, test_images = F.avg_pool2d(images, side), F.avg_pool2d(test_images, side)
    size = tuple(images.shape[2:])
    if image_size is not None and height_and_width(image_size) != size:
        hint = f"Leave it out, or give the model image_size {simplest_size(size)}."
        raise ValueError(f"image_size of {args.dataset_name} must be {list(size)}; received {image_size}. {hint}")
    if num_channels not in (None, 1):
        raise ValueError(f"num_channels of {args.dataset_name} must be 1; received {num_channels}. Leave it out.")
    train, test = draw_rows(labels, args.max_train_samples, seed), draw_rows(test_labels, args.max_eval_samples, seed)
    return Data(
        train=ImageDataset(images[train], labels[train], augment=args.augment),
        eval=ImageDataset(test_images[test], test_labels[test]),
        label_names=names,
        image_size=simplest_size(size),
        num_channels=1,
    )


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
    if not folder.is_dir():
        check_id(name, "dataset_name must be a folder that exists, or a data set on the Hub")
        check_data_set(name, list(BUILT_IN), datasets.config.HF_DATASETS_CACHE)
    try:
        if any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(folder))
        else:
            source = str(folder) if folder.is_dir() else name
            loaded = datasets.load_dataset(source, args.dataset_config, trust_remote_code=False)
    except OSError as error:  # there is no such data set, no network, or nothing in the folder that can be read
        raise ValueError(
            f"dataset_name must be {', '.join(BUILT_IN)}, a folder with data, or a Hub id; received {name!r}. {error}"
        ) from error
    return loaded if isinstance(loaded, Mapping) else {args.dataset_train_split: loaded}
