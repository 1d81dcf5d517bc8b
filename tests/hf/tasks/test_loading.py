"""load_data: every error names its way out, and the packages of the recipes are imported only when they are needed."""

import subprocess
import sys

import pytest
from transformers import HfArgumentParser

from hf_lottery.hf.tasks.data import DataArguments
from hf_lottery.storage.hub_mixin import HubError


def test_options_that_contradict_are_refused(load):
    with pytest.raises(ValueError, match=r"task must be one of image-class.*; received 'detection'\."):
        load("digits", "detection")
    with pytest.raises(ValueError, match=r"data set 'digits' must go with image-.*; received task 'causal-lm'\."):
        load("digits", "causal-lm")
    with pytest.raises(ValueError, match=r"augment must go with image-cl.*; received True with text-classif"):
        load("somewhere", "text-classification", augment=True)
    with pytest.raises(ValueError, match=r"image_size of digits must be \[8, 8\]; received 32\."):
        load("digits", image_size=32)
    with pytest.raises(ValueError, match=r"num_channels of digits must be 1; received 3\."):
        load("digits", num_channels=3)
    with pytest.raises(ValueError, match=r"average_pixels must divide the size; received 3 for images of \[8, 8\]\."):
        load("digits", average_pixels=3)
    with pytest.raises(ValueError, match=r"image_size of digits must be \[4, 4\]; received 8\."):
        load("digits", average_pixels=2, image_size=8)
    with pytest.raises(ValueError, match=r"average_pixels must go with digits, fash.*; received 2 with .* Leave"):
        load("somewhere", average_pixels=2)
    assert load("digits", image_size=8, num_channels=1).num_labels == 10


@pytest.mark.parametrize(
    ("name", "task", "option"),
    [
        ("digits", "image-classification", {"label_column_name": "y"}),
        ("digits", "image-classification", {"dataset_test_split": "test"}),
        ("digits", "image-classification", {"dataset_dir": "/data"}),
        ("mnist1d", "image-classification", {"max_length": 4}),
        ("pictures", "image-classification", {"block_size": 4}),
        ("texts", "text-classification", {"image_column_name": "image"}),
        ("texts", "causal-lm", {"label_column_name": "label"}),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(load, name, task, option):
    kind = task if name in ("pictures", "texts") else name
    ((option_name, value),) = option.items()
    with pytest.raises(ValueError, match=rf"{option_name} must go with .*; received {value!r} with {kind}\. Leave it"):
        load(name, task, **option)


@pytest.mark.parametrize(
    "name", ["max_train_samples", "max_eval_samples", "max_length", "block_size", "average_pixels"]
)
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be at least 1; received 0\. Leave it out"):
        DataArguments(**{name: 0})


def test_unknown_data_sets_and_folders_are_refused(load, tmp_path):
    match = r"must be digits, fashion_mnist, mnist1d, a folder .*; received 'digitz'\. Did you mean digits"
    with pytest.raises(HubError, match=match):  # offline, nobody knows whether the Hub has it
        load("digitz")
    with pytest.raises(FileNotFoundError, match="must be a folder that exists, or .*; received '/no/where'"):
        load("/no/where")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"a folder with data, or a Hub id; received '.*empty'\."):
        load(tmp_path / "empty")


@pytest.mark.parametrize("option", ["dataset_train_split", "dataset_test_split"])
def test_missing_splits_are_refused(load, pictures, option):
    with pytest.raises(ValueError, match=rf"{option} must be a split of .*; received 'dev'\. It has: train, test\."):
        load(pictures, **{option: "dev"})


@pytest.mark.parametrize("kind", ["image", "label"])
def test_missing_columns_name_those_there_are(load, pictures, kind):
    with pytest.raises(ValueError, match=rf"{kind}_column_name must .*; received 'x'\. There are: image, label\."):
        load(pictures, **{f"{kind}_column_name": "x"})


def test_columns_that_cannot_be_found_are_asked_for(load, reviews, tokenizer):
    for split in ("train", "test"):
        path = reviews / f"{split}.csv"
        path.write_text(path.read_text().replace("text,label", "review,stars"))
    with pytest.raises(ValueError, match=r"label_column_name must .*; received None\. There are: review, stars\."):
        load(reviews, "text-classification", model=tokenizer)
    assert load(reviews, "text-classification", model=tokenizer, label_column_name="stars").num_labels == 2
    with pytest.raises(ValueError, match=r"image_column_name must .*; received None\."):
        load(reviews, label_column_name="stars")


@pytest.mark.parametrize(("name", "module"), [("digits", "sklearn"), ("mnist1d", "mnist1d"), ("some/data", "datasets")])
def test_missing_packages_name_the_extra(load, monkeypatch, name, module):
    for loaded in [key for key in sys.modules if key == module or key.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{module} must be installed .*`pip install hf-lottery\[recipes\]`"):
        load(name)


@pytest.mark.slow
def test_importing_the_modules_needs_none_of_the_extras():
    extras = ("datasets", "sklearn", "mnist1d", "matplotlib", "evaluate")
    code = (
        f"import sys\nfor name in {extras}: sys.modules[name] = None\n"
        "from hf_lottery.hf.commands import align_mask, connectivity, find_ticket, main, train_ticket\n"
        "from hf_lottery.hf.ladder import main\nfrom hf_lottery.hf.tasks.loading import load_data"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_arguments_come_from_the_command_line():
    line = ["--dataset_name", "fashion_mnist", "--augment", "--max_train_samples", "9", "--label_column_name", "y"]
    (args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(line)
    assert args == DataArguments("fashion_mnist", augment=True, max_train_samples=9, label_column_name="y")
    assert DataArguments().dataset_dir == "/usr/share/datasets/fashion-mnist"
