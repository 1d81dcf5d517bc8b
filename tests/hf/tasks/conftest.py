"""Data to load: local folders of images and of texts, a tokenizer; the user's cache stays untouched."""

import datasets
import pytest
from PIL import Image
from recipe_runs import REVIEWS, write_tokenizer

from hf_lottery.hf.tasks.data import DataArguments
from hf_lottery.hf.tasks.loading import load_data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or leaves anything in the user's cache, and none asks the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def load():
    """Load data: their name, the task, and options of the command line."""

    def call(name, task="image-classification", *, seed=0, model=None, image_size=None, num_channels=None, **options):
        args = DataArguments(dataset_name=str(name), **options)
        sizes = {"image_size": image_size, "num_channels": num_channels}
        return load_data(args, task, seed=seed, model_name_or_path=model, **sizes)

    return call


@pytest.fixture
def pictures(tmp_path):
    """An imagefolder: 6 + 6 images to train, 2 + 2 to test, 10x6 pixels (width x height), all of one colour."""
    folder = tmp_path / "pictures"
    for split, count in (("train", 6), ("test", 2)):
        for label, value in (("dark", 0), ("light", 255)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (10, 6), (value, 51, 255)).save(folder / split / label / f"{i}.png")
    return folder


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.fixture
def reviews(tmp_path):
    """A folder with 20 texts to train and 2 to test, with labels."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\n" + "\n".join(REVIEWS * 5))
    (folder / "test.csv").write_text("text,label\n" + "\n".join(REVIEWS[:2]))
    return folder
