"""Three small data sets that need no network: arrays of images or signals, normalised, with their labels.

- ``digits``: 1,797 images of 8x8 pixels from scikit-learn.
- ``fashion_mnist``: 70,000 images of 28x28 pixels from a Debian package.
- ``mnist1d``: 5,000 generated signals of length 40, as images one pixel high. A fully connected network flattens them,
  a convolutional one runs along them.
"""

from __future__ import annotations

import gzip
import importlib
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...networks.generators import kept_generators

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FASHION_HINT = "Try `apt-get install dataset-fashion-mnist`."
DIGITS = tuple("0123456789")
# Train images [n, 1, height, width], train labels [n], test images, test labels.
Splits = tuple[Tensor, Tensor, Tensor, Tensor]


def digits(folder: str) -> tuple[Splits, tuple[str, ...]]:
    """Load scikit-learn's digits; ``folder`` is not used."""
    data = require("sklearn.datasets").load_digits()
    images, labels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    split = require("sklearn.model_selection").train_test_split
    # The seed is fixed, because networks of different seeds are compared on the same test set.
    train, test = split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=data.target)
    return _normalised(images[train], labels[train], images[test], labels[test]), DIGITS


def fashion_mnist(folder: str) -> tuple[Splits, tuple[str, ...]]:
    """Read Fashion-MNIST from the four idx files in ``folder``, plain or gzipped.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the files do not belong together.
    """
    splits: list[Tensor] = []
    for prefix in ("train", "t10k"):
        images = _read_idx(folder, f"{prefix}-images-idx3-ubyte").float()[:, None] / 255
        labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte").long()
        if len(images) != len(labels) or not len(labels):
            counts = f"{len(images)} images and {len(labels)} labels"
            raise ValueError(f"{prefix} files must hold one label per image; received {counts}. {FASHION_HINT}")
        if labels.max() >= len(FASHION):
            raise ValueError(f"{prefix} labels must be 0 to 9; received {int(labels.max())}. {FASHION_HINT}")
        splits += [images, labels]
    return _normalised(splits[0], splits[1], splits[2], splits[3]), FASHION


def mnist1d(folder: str) -> tuple[Splits, tuple[str, ...]]:
    """Generate MNIST-1D by its package with the package's defaults; ``folder`` is not used."""
    source = require("mnist1d.data")
    # make_dataset() generates, where get_dataset() may download; it also seeds the process's generators.
    with kept_generators(accelerators=False):
        made = source.make_dataset(source.get_dataset_args())
    train, test = (torch.tensor(made[x], dtype=torch.float32)[:, None, None] for x in ("x", "x_test"))
    return (train, torch.tensor(made["y"]), test, torch.tensor(made["y_test"])), DIGITS


def _normalised(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> Splits:
    mean, std = train.mean(), train.std()
    return (train - mean) / std, labels, (test - mean) / std, test_labels


def _read_idx(folder: str, name: str) -> Tensor:
    """Read a file of unsigned bytes in the idx format: 0, 0, type 8, number of axes; their lengths; the bytes."""
    paths = [Path(folder) / name, Path(folder) / f"{name}.gz"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"dataset_dir must hold {name} or {name}.gz; received {folder!r}. {FASHION_HINT}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file; received: {error}. {FASHION_HINT}") from error
    axes = int(name[name.index("idx") + 3])
    if raw[:4] != bytes((0, 0, 8, axes)):
        raise ValueError(
            f"{path} must start with magic number {2048 + axes}; received {raw[:4].hex() or 'nothing'}. {FASHION_HINT}"
        )
    start = 4 + 4 * axes
    lengths = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if len(raw) != start + math.prod(lengths):
        expected = f"{start + math.prod(lengths)} bytes for lengths {lengths}"
        raise ValueError(f"{path} must hold {expected}; received {len(raw)} bytes. {FASHION_HINT}")
    return torch.tensor(np.frombuffer(raw, dtype=np.uint8, offset=start)).view(lengths)


def require(module: str) -> Any:
    """Import a module that only the recipes need.

    Raises:
        ModuleNotFoundError: Its package is not installed; the message says which extra installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        hint = "Run `pip install hf-lottery[recipes]`."
        raise ModuleNotFoundError(f"{package} must be installed for this data; received nothing. {hint}") from error


BUILT_IN = {"digits": digits, "fashion_mnist": fashion_mnist, "mnist1d": mnist1d}
