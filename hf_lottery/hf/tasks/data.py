"""What a recipe trains on: the options that ask for it, and the data that come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import default_data_collator

from ..hub.local_paths import LOCAL
from ..metrics import classification_metrics, predicted_classes


@dataclass
class DataArguments:
    """What a recipe trains on, as command line options.

    Raises:
        ValueError: A number of samples, ``max_length`` or ``block_size`` is below 1, the seed is negative, or a ticket
            that gave the defaults does not know where its data are.
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
        metadata={"help": "For fashion_mnist: the folder with its four idx files, plain or .gz."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(
        default=None,
        metadata={"help": "Split to evaluate on. Default: test, else validation, else 15 %% cut off the train split."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many samples, drawn at random. Default: all."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many samples, drawn at random. Default: all."}
    )
    split_seed: int = field(
        default=0,
        metadata={
            "help": "Seed that draws these samples and, without a test split, the cut. Networks that are compared "
            "must share it."
        },
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of images. Default: the one that holds images."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of labels. Default: the one that holds classes, or has a usual name."}
    )
    text_column_name: str | None = field(
        default=None, metadata={"help": "Column of text. Default: the only one of text, or one with a usual name."}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Text classification: texts are cut to this many tokens. Default: the tokenizer's limit."},
    )
    block_size: int | None = field(
        default=None,
        metadata={"help": "Causal language models: tokens in a sample. Default: the tokenizer's limit, at most 1024."},
    )
    average_pixels: int = field(
        default=1,
        metadata={
            "help": "Built-in images: average over squares of this side, which must divide the size. 2 makes 14x14 "
            "pixels of 28x28."
        },
    )
    augment: bool = field(
        default=False,
        metadata={"help": "Images: shift by up to 1/8 of the size and flip left-right, at random, in training."},
    )

    def __post_init__(self) -> None:
        if self.dataset_name == LOCAL:
            raise ValueError(
                "dataset_name must be given, as the ticket was found on data in a folder of another machine; received "
                "none. Name the same data."
            )
        if not 0 <= self.split_seed < 2**32:
            raise ValueError(f"split_seed must be from 0 to {2**32 - 1}; received {self.split_seed}.")
        for name in ("max_train_samples", "max_eval_samples", "max_length", "block_size", "average_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; received {value}. Leave it out for the default.")


@dataclass
class Data:
    """Data that are ready for a ``Trainer``.

    Args:
        train: What to train on; items are dicts of what the model's ``forward`` takes.
        eval: What to evaluate on.
        data_collator: Makes a batch of items.
        processing_class: Tokenizer or image processor, to be saved with the model; None if there is none.
        label_names: Name of each class; empty for a causal language model.
        image_size: Side of a square image, or (height, width), in pixels; None for text.
        num_channels: 1 or 3; None for text.
        pad_token_id: Token that the collator pads with; None for images and causal language models.
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
        """The fields of a model's configuration that follow from the data: ``LeNetConfig(**data.config_kwargs)``."""
        kwargs: dict[str, Any] = {}
        if self.label_names:
            kwargs["id2label"] = dict(enumerate(self.label_names))
            kwargs["label2id"] = {name: i for i, name in enumerate(self.label_names)}
        if self.processing_class is None:  # an image processor follows its model's sizes, it does not set them
            kwargs |= {"image_size": self.image_size, "num_channels": self.num_channels}
        if self.pad_token_id is not None:
            kwargs["pad_token_id"] = self.pad_token_id
        return kwargs


def trainer_arguments(task: str, data: Data) -> dict[str, Any]:
    """The arguments of any Trainer that follow from the task and the data.

    Args:
        task: What the network is for, such as "image-classification".
        data: What it trains on.
    """
    arguments: dict[str, Any] = {
        "train_dataset": data.train,
        "eval_dataset": data.eval,
        "data_collator": data.data_collator,
        "processing_class": data.processing_class,
    }
    if task != "causal-lm":
        arguments |= {
            "compute_metrics": classification_metrics(),
            "preprocess_logits_for_metrics": predicted_classes,
        }
    return arguments
