"""Data sets are told apart by their fingerprint, or by their length and some of their samples."""

import os
import random
from collections import UserDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from hf_lottery.hf.trainers.data_identity import identify_data


@dataclass
class Pair:
    a: int
    b: str


def same(*samples):
    return identify_data(list(samples))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("ab", b"ab"),
        (["a", "bc"], ["ab", "c"]),
        ([1, [2]], [[1], 2]),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        (UserDict(a=1), UserDict(a=2)),
        (Pair(1, "x"), Pair(1, "y")),
        (torch.zeros(4), torch.zeros(2, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
        (torch.tensor(1), torch.tensor(2)),
        (torch.arange(4.0).reshape(2, 2), torch.arange(4.0).reshape(2, 2).T),
        (np.zeros(3), np.ones(3)),
        (np.float32(1), np.float64(1)),
        (np.array(["a", 1], dtype=object), np.array(["a", 2], dtype=object)),
        (Image.new("L", (2, 2), 3), Image.new("L", (2, 2), 4)),
        (None, 0),
    ],
)
def test_samples_that_differ_are_told_apart(one, other):
    assert same(one) == same(one) != same(other)
    assert "samples" in same(one) and "samples" in same(other)


def test_first_last_and_samples_between_count():
    numbers = list(range(1000))
    for place in (0, 66, 999):
        assert identify_data(numbers) != identify_data([n + (n == place) for n in numbers])
    assert identify_data([])["length"] == 0 and identify_data(None) is None


class Drawn(torch.utils.data.Dataset):
    def __init__(self, draw):
        self.draw, self.read = draw, 0

    def __len__(self):
        return 20

    def __getitem__(self, i):
        self.read += 1
        return {"x": self.draw(), "i": i}


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(2),
        lambda: np.random.rand(2),
        random.random,
        np.random.default_rng().random,
        lambda: float(torch.rand(()) < 0.3),
    ],
    ids=["torch", "numpy", "python", "a generator of its own", "now and then"],
)
def test_samples_that_differ_at_every_read_are_not_compared(draw):
    for seed in (0, 1):
        torch.manual_seed(seed)
        assert identify_data(Drawn(draw)) == {
            "class": "Drawn", "length": 20, "unknown": "its samples differ at every read"
        }  # fmt: skip


def test_what_cannot_be_read_is_not_compared():
    for sample in (object(), {1, 2}, torch.eye(2).to_sparse()):
        assert "which cannot be compared" in same(sample)["unknown"]
    for stream in (Dataset.from_dict({"a": [1]}).to_iterable_dataset(), iter([1])):
        assert identify_data(stream)["unknown"] == "it is a stream"


def test_a_data_set_of_datasets_is_not_read():
    read = []
    data = Dataset.from_dict({"a": list(range(10))})
    assert set(identify_data(data)) == {"class", "length", "fingerprint"}
    identify_data(data.with_transform(lambda rows: read.append(rows) or rows))
    assert not read and identify_data(data) == identify_data(Dataset.from_dict({"a": list(range(10))}))
    assert identify_data(data) != identify_data(data.map(lambda row: {"a": row["a"] + 1}, keep_in_memory=True))
    # A wrapped one has samples alone.
    assert "samples" in identify_data(torch.utils.data.Subset(data, range(5)))


class OpenedOnce(torch.utils.data.Dataset):
    """Opens its file at the first read, as for HDF5 and LMDB: each worker must open its own."""

    opened_by = None

    def __len__(self):
        return 20

    def __getitem__(self, i):
        self.opened_by = self.opened_by or os.getpid()
        return i


def test_what_workers_read_is_not_opened_before_them():
    data = OpenedOnce()
    assert identify_data(data, workers=2) == identify_data(OpenedOnce()) and data.opened_by is None
    assert "unknown" in identify_data([object()], workers=1)


def test_random_generators_are_not_disturbed():
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = drawn()
    seed()
    data = Drawn(drawn)
    identify_data(data)
    assert drawn() == expected and data.read == 32
