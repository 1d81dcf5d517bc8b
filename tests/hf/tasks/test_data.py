"""recipes/data.py: the built-in data are what they claim, local folders load, and every error names its way out."""

import gzip
import random
import struct
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, PreTrainedTokenizerFast, Trainer, TrainingArguments, ViTImageProcessorPil

from hf_lottery.hf.tasks import data, models
from hf_lottery.hf.tasks.data import DataArguments, load_data

IMAGES = "image-classification"
TEXTS = "text-classification"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or leaves anything in the user's cache, and none asks the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def load(name, task=IMAGES, *, seed=0, model=None, image_size=None, num_channels=None, **options):
    args = DataArguments(dataset_name=str(name), **options)
    return load_data(args, task, seed=seed, model_name_or_path=model, image_size=image_size, num_channels=num_channels)


# Built in


def test_digits_are_the_real_ones_split_the_same_for_every_seed():
    digits = load("digits", seed=0)
    assert digits.train.images.shape == (1437, 1, 8, 8) and digits.eval.images.shape == (360, 1, 8, 8)
    assert digits.train.images.mean().abs() < 1e-5 and abs(digits.train.images.std() - 1) < 1e-5
    counts = digits.eval.labels.bincount()
    assert counts.min() >= 33 and counts.max() <= 38
    original = load_digits()
    pixels = torch.cat([digits.train.images, digits.eval.images]).flatten(1)
    pixels = ((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 16).round().int().tolist()
    labels = torch.cat([digits.train.labels, digits.eval.labels]).tolist()
    real = sorted(
        (row, int(label)) for row, label in zip(original.data.astype(int).tolist(), original.target, strict=True)
    )
    assert sorted(zip(pixels, labels, strict=True)) == real
    assert torch.equal(load("digits", seed=5).eval.images, digits.eval.images)


def test_digits_configure_and_train_a_network_through_the_trainer(tmp_path):
    digits = load("digits", max_train_samples=256, max_eval_samples=100)
    torch.manual_seed(0)
    config = models.LeNetConfig(**digits.config_kwargs)
    assert (config.num_labels, config.image_size, config.num_channels, config.id2label[3]) == (10, 8, 1, "3")
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=32,
        num_train_epochs=10,
        learning_rate=3e-3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = Trainer(
        models.LeNetForImageClassification(config),
        args,
        train_dataset=digits.train,
        eval_dataset=digits.eval,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.85


def test_mnist1d_is_generated_by_its_defaults_and_leaves_the_random_state_alone(monkeypatch):
    from mnist1d.data import get_dataset_args, make_dataset

    monkeypatch.setattr("requests.get", lambda *a, **k: pytest.fail("downloads"))
    random.seed(7)
    np.random.seed(7)
    expected = random.random(), np.random.random()
    random.seed(7)
    np.random.seed(7)
    signals = load("mnist1d")
    assert (random.random(), np.random.random()) == expected
    assert signals.train.images.shape == (4000, 1, 1, 40) and signals.eval.images.shape == (1000, 1, 1, 40)
    assert signals.image_size == (1, 40) and signals.num_channels == 1 and signals.num_labels == 10
    np.testing.assert_array_equal(
        signals.eval.images[:, 0, 0], make_dataset(get_dataset_args())["x_test"].astype("float32")
    )
    batch = torch.stack([signals.train[i]["pixel_values"] for i in range(4)])
    for config in (models.LeNetConfig(**signals.config_kwargs), models.ResNetCifarConfig(**signals.config_kwargs)):
        model = models.AutoModelForImageClassification.from_config(config)
        assert model(batch).logits.shape == (4, 10)


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path):
    """A folder with 12 and 5 random images in the four files of fashion_mnist; train files plain, test files gzip."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 12), ("t10k", 5)):
        arrays = {
            "images-idx3": generator.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            "labels-idx1": np.arange(count, dtype=np.uint8) % 10,
        }
        for kind, array in arrays.items():
            path = folder / f"{prefix}-{kind}-ubyte"
            if prefix == "train":
                path.write_bytes(idx(array))
            else:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(array)))
    return folder


def test_fashion_mnist_reads_plain_and_gzip_files(fashion):
    clothes = load("fashion_mnist", dataset_dir=str(fashion))
    assert clothes.train.images.shape == (12, 1, 28, 28) and clothes.eval.images.shape == (5, 1, 28, 28)
    raw = np.frombuffer((fashion / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16) / 255
    expected = (raw.reshape(12, 1, 28, 28) - raw.mean()) / raw.std(ddof=1)
    np.testing.assert_allclose(clothes.train.images, expected, atol=1e-5)
    raw = (
        np.frombuffer(gzip.decompress((fashion / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16) / 255
    )
    mean, std = (np.frombuffer((fashion / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16) / 255,) * 2
    np.testing.assert_allclose(
        clothes.eval.images, (raw.reshape(5, 1, 28, 28) - mean.mean()) / std.std(ddof=1), atol=1e-5
    )
    assert clothes.train.labels.tolist() == [*range(10), 0, 1]
    assert clothes.label_names[9] == "Ankle boot" and clothes.image_size == 28


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def swap_magic(path):
    path.write_bytes(b"\0\0\x0d\x03" + path.read_bytes()[4:])


def write(array):
    return lambda path: path.write_bytes(idx(np.asarray(array, dtype=np.uint8)))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train-images-idx3-ubyte", cut, r"must hold 9424 bytes for lengths \[12, 28, 28\]; received 9421 bytes\."),
        ("train-images-idx3-ubyte", lengthen, r"must hold 9424 bytes .*; received 9425 bytes\."),
        ("train-images-idx3-ubyte", swap_magic, r"must start with magic number 2051; received 00000d03\."),
        ("train-labels-idx1-ubyte", swap_magic, r"must start with magic number 2049; received 00000d03\."),
        ("train-labels-idx1-ubyte", lambda p: p.write_bytes(b""), r"magic number 2049; received nothing\."),
        (
            "train-labels-idx1-ubyte",
            lambda p: p.write_bytes(b"\0\0\x08\x01\0"),
            r"must hold \d+ bytes .* received 5 bytes",
        ),
        ("t10k-images-idx3-ubyte.gz", cut, r"must be a whole gzip file; received: .*\."),
        ("t10k-images-idx3-ubyte.gz", lambda p: p.write_bytes(b"html"), r"must be a whole gzip file; received: .*\."),
        ("train-labels-idx1-ubyte", write(range(3)), r"one label per image; received 12 images and 3 labels\."),
        ("train-labels-idx1-ubyte", write([10] * 12), r"labels must be 0 to 9; received 10\."),
    ],
)
def test_damaged_idx_files_are_refused(fashion, file, damage, message):
    damage(fashion / file)
    with pytest.raises(ValueError, match=message + r".*apt-get install dataset-fashion-mnist"):
        load("fashion_mnist", dataset_dir=str(fashion))


def test_missing_idx_files_name_the_package(fashion, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset_dir must hold train-images.* or .*gz; received .*apt-get"):
        load("fashion_mnist", dataset_dir=str(tmp_path / "nowhere"))
    (fashion / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset_dir must hold t10k-labels-idx1-ubyte or"):
        load("fashion_mnist", dataset_dir=str(fashion))


def test_samples_are_drawn_by_the_seed():
    few, again, other = (load("digits", max_train_samples=50, max_eval_samples=20, seed=s) for s in (0, 0, 1))
    assert len(few.train) == 50 and len(few.eval) == 20
    assert torch.equal(few.train.images, again.train.images) and torch.equal(few.eval.labels, again.eval.labels)
    assert not torch.equal(few.train.images, other.train.images)
    everything = load("digits")
    assert all((everything.train.images == image).flatten(1).all(1).any() for image in few.train.images)
    assert torch.equal(load("digits", max_train_samples=9999).train.images, everything.train.images)


# Augmentation


def test_augmentation_shifts_by_an_eighth_and_flips_training_images_only():
    digits = load("digits", augment=True)
    assert digits.train.augment and not digits.eval.augment
    torch.manual_seed(0)
    spot = torch.zeros(2, 16, 24)
    spot[:, 8, 12] = 1
    seen = {tuple(data.shift_and_flip(spot)[0].nonzero()[0].tolist()) for _ in range(600)}
    rows, columns = {row for row, _ in seen}, {column for _, column in seen}
    assert rows == {6, 7, 8, 9, 10}
    assert columns == {*range(9, 16), *range(8, 15)}  # 12 +- 3, and 23 minus that


def test_augmentation_keeps_content_and_repeats_edges():
    torch.manual_seed(0)
    image = torch.arange(64.0).view(1, 8, 8)
    for _ in range(50):
        moved = data.shift_and_flip(image)
        assert moved.shape == image.shape
        assert set(moved.flatten().tolist()) <= set(image.flatten().tolist())
        rows, columns = moved[0, :, 0].diff(), moved[0, 0].diff()
        assert (rows >= 0).all() and ((columns >= 0).all() or (columns <= 0).all())  # nothing wraps around
    signal = data.shift_and_flip(torch.ones(1, 1, 40))
    assert torch.equal(signal, torch.ones(1, 1, 40))


def test_augmentation_follows_torchs_seed():
    digits = load("digits", augment=True)
    torch.manual_seed(3)
    first = [digits.train[0]["pixel_values"] for _ in range(8)]
    torch.manual_seed(3)
    assert all(torch.equal(a, digits.train[0]["pixel_values"]) for a in first)
    assert any(not torch.equal(a, first[0]) for a in first)


# Images that `datasets` loads


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


def test_imagefolder_gives_scaled_images_and_class_names(pictures):
    loaded = load(pictures)
    assert loaded.label_names == ("dark", "light") and (loaded.image_size, loaded.num_channels) == ((6, 10), 3)
    assert len(loaded.train) == 12 and len(loaded.eval) == 4
    for item in (loaded.train[0], loaded.train[11], loaded.eval[3]):
        expected = torch.tensor([2.0 * item["labels"] - 1, -0.6, 1.0])[:, None, None].expand(3, 6, 10)
        torch.testing.assert_close(item["pixel_values"], expected)
    batch = next(iter(DataLoader(loaded.train, batch_size=3, collate_fn=loaded.data_collator)))
    assert batch["pixel_values"].shape == (3, 3, 6, 10) and batch["labels"].tolist() == [0, 0, 0]


def test_images_are_brought_to_the_size_and_channels_asked_for(pictures):
    loaded = load(pictures, image_size=8, num_channels=1)
    assert loaded.train[0]["pixel_values"].shape == (1, 8, 8)
    assert loaded.config_kwargs["image_size"] == 8 and loaded.config_kwargs["num_channels"] == 1
    assert load(pictures, image_size=(4, 5)).train[0]["pixel_values"].shape == (3, 4, 5)


def test_the_models_image_processor_prepares_images(pictures, tmp_path):
    processor = ViTImageProcessorPil(size={"height": 12, "width": 12}, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    processor.save_pretrained(tmp_path / "vit")
    loaded = load(pictures, model=str(tmp_path / "vit"), image_size=8)
    assert loaded.train[0]["pixel_values"].shape == (3, 12, 12) and loaded.image_size == 12
    torch.testing.assert_close(loaded.train[0]["pixel_values"][:, 0, 0], torch.tensor([0.0, 0.2, 1.0]))
    assert type(loaded.processing_class).__name__ == "ViTImageProcessorPil"
    assert "image_size" not in loaded.config_kwargs


def test_a_model_without_image_processor_gets_plain_images(pictures, tmp_path, caplog):
    models.LeNetForImageClassification(models.LeNetConfig(image_size=4)).save_pretrained(tmp_path / "lenet")
    loaded = load(pictures, model=str(tmp_path / "lenet"), image_size=4)
    assert loaded.train[0]["pixel_values"].shape == (3, 4, 4) and loaded.processing_class is None
    assert "no image processor" in caplog.text


def test_drawn_images_keep_their_labels_although_folders_are_sorted(pictures):
    loaded = load(pictures, max_train_samples=8, augment=True)
    assert len(loaded.train) == 8 and set(loaded.train.labels.tolist()) == {0, 1}
    assert all(
        item["pixel_values"][0, 0, 0] == 2 * item["labels"] - 1 for item in map(loaded.train.__getitem__, range(8))
    )


def grey(value):
    return Image.new("L", (4, 4), value)


def table(values, labels):
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.Value("string")})
    return datasets.Dataset.from_dict({"photo": [grey(v) for v in values], "kind": labels}, features=features)


def test_save_to_disk_folders_load_with_and_without_splits(tmp_path, caplog):
    rows = table(range(0, 200, 5), ["b", "a"] * 20)
    rows.save_to_disk(str(tmp_path / "one"))
    one = load(tmp_path / "one", label_column_name="kind")
    assert (len(one.train), len(one.eval)) == (34, 6)
    assert "evaluating on 6 of 40 training samples, seed 0" in caplog.text
    assert one.label_names == ("a", "b") and (one.image_size, one.num_channels) == (4, 1)
    for part in (one.train, one.eval):
        for item in map(part.__getitem__, range(len(part))):
            value = round((item["pixel_values"][0, 0, 0].item() + 1) * 127.5)
            assert item["labels"] == 1 - value // 5 % 2
    values = [
        {round(x.mean().item(), 4) for x in (load(tmp_path / "one", label_column_name="kind", seed=s).eval.images)}
        for s in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]

    splits = datasets.DatasetDict(train=rows, validation=rows.select(range(3)), test=rows.select(range(7)))
    splits.save_to_disk(str(tmp_path / "three"))
    assert len(load(tmp_path / "three", label_column_name="kind").eval) == 7
    assert len(load(tmp_path / "three", label_column_name="kind", dataset_test_split="validation").eval) == 3
    del splits["test"]
    splits.save_to_disk(str(tmp_path / "two"))
    assert len(load(tmp_path / "two", label_column_name="kind").eval) == 3


# Text

WORDS = ["[UNK]", "[PAD]", "[EOS]", "good", "bad", "film", "a", "the"]


@pytest.fixture
def tokenizer(tmp_path):
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]", model_max_length=16
    ).save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.fixture
def reviews(tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    rows = ["a good film,1", "bad,0", "the bad film,0", "good good good good,1"]
    (folder / "train.csv").write_text("text,label\n" + "\n".join(rows * 5))
    (folder / "test.csv").write_text("text,label\n" + "\n".join(rows[:2]))
    return folder


def test_csv_texts_are_tokenised_and_padded(reviews, tokenizer):
    loaded = load(reviews, TEXTS, model=tokenizer, max_length=3)
    assert loaded.label_names == ("0", "1") and loaded.pad_token_id is None
    assert set(loaded.config_kwargs) == {"id2label", "label2id"}
    assert (len(loaded.train), len(loaded.eval)) == (20, 2)
    assert loaded.train[3]["input_ids"] == [3, 3, 3] and loaded.train[3]["labels"] == 1
    batch = loaded.data_collator([loaded.train[i] for i in range(2)])
    assert batch["input_ids"].tolist() == [[6, 3, 5], [4, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    few = load(reviews, TEXTS, model=tokenizer, max_train_samples=15)
    right = {(6, 3, 5): 1, (4,): 0, (7, 4, 5): 0, (3, 3, 3, 3): 1}
    assert len(few.train) == 15 and all(right[tuple(item["input_ids"])] == item["labels"] for item in few.train)


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(reviews, tokenizer, tmp_path, caplog):
    loaded = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    loaded.pad_token = None
    loaded.save_pretrained(tmp_path / "unpadded")
    texts = load(reviews, TEXTS, model=str(tmp_path / "unpadded"))
    assert texts.config_kwargs["pad_token_id"] == 2 and "no padding token" in caplog.text
    assert texts.data_collator([texts.train[i] for i in range(2)])["input_ids"].tolist() == [[6, 3, 5], [4, 2, 2]]


def test_causal_lm_joins_texts_and_cuts_them_into_blocks(reviews, tokenizer):
    loaded = load(reviews, "causal-lm", model=tokenizer, block_size=4)
    stream = [6, 3, 5, 4, 7, 4, 5, 3, 3, 3, 3] * 5
    assert [item["input_ids"] for item in loaded.train] == [stream[at : at + 4] for at in range(0, 52, 4)]
    assert loaded.train["labels"][:] == loaded.train["input_ids"][:]
    batch = loaded.data_collator([loaded.train[0], loaded.train[1]])
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 4) and batch["attention_mask"].all()
    assert loaded.num_labels == 0 and loaded.config_kwargs == {}
    assert len(load(reviews, "causal-lm", model=tokenizer, block_size=4, max_train_samples=3).train) == 3
    both = load(reviews, "causal-lm", model=tokenizer, dataset_test_split="train")
    assert len(both.train[0]["input_ids"]) == 16  # the tokenizer's model_max_length


# Errors


def test_options_that_contradict_are_refused():
    with pytest.raises(ValueError, match=r"task must be one of image-class.*; received 'detection'\."):
        load("digits", "detection")
    with pytest.raises(ValueError, match=r"data set 'digits' must go with image-.*; received task 'causal-lm'\."):
        load("digits", "causal-lm")
    with pytest.raises(ValueError, match=r"augment must go with image-.*; received task 'text-classification'\."):
        load("somewhere", TEXTS, augment=True)
    with pytest.raises(ValueError, match=r"image_size of digits must be \[8, 8\]; received 32\."):
        load("digits", image_size=32)
    with pytest.raises(ValueError, match=r"num_channels of digits must be 1; received 3\."):
        load("digits", num_channels=3)
    assert load("digits", image_size=8, num_channels=1).num_labels == 10


@pytest.mark.parametrize("name", ["max_train_samples", "max_eval_samples", "max_length", "block_size"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be at least 1; received 0\. Leave it out"):
        DataArguments(**{name: 0})


def test_unknown_data_sets_and_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be digits, fashion_mnist, mnist1d, a folder .*; received 'digitz'\."):
        load("digitz")
    with pytest.raises(FileNotFoundError, match=r"dataset_name must be a folder that exists; received '/no/where'\."):
        load("/no/where")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"a folder with data, or a Hub id; received '.*empty'\."):
        load(tmp_path / "empty")


@pytest.mark.parametrize("option", ["dataset_train_split", "dataset_test_split"])
def test_missing_splits_are_refused(pictures, option):
    with pytest.raises(ValueError, match=rf"{option} must be a split of .*; received 'dev'\. It has: train, test\."):
        load(pictures, **{option: "dev"})


@pytest.mark.parametrize("kind", ["image", "label"])
def test_missing_columns_name_those_there_are(pictures, kind):
    with pytest.raises(ValueError, match=rf"{kind}_column_name must .*; received 'x'\. There are: image, label\."):
        load(pictures, **{f"{kind}_column_name": "x"})


def test_columns_that_cannot_be_found_are_asked_for(reviews, tokenizer):
    for split in ("train", "test"):
        path = reviews / f"{split}.csv"
        path.write_text(path.read_text().replace("text,label", "review,stars"))
    with pytest.raises(ValueError, match=r"label_column_name must .*; received None\. There are: review, stars\."):
        load(reviews, TEXTS, model=tokenizer)
    assert load(reviews, TEXTS, model=tokenizer, label_column_name="stars").num_labels == 2
    with pytest.raises(ValueError, match=r"image_column_name must .*; received None\."):
        load(reviews, label_column_name="stars")


def test_an_image_column_must_hold_images(reviews):
    with pytest.raises(ValueError, match=r"image column 'text' must hold images; received str\."):
        load(reviews, image_column_name="text")


def test_hidden_labels_are_refused(reviews, tokenizer):
    (reviews / "test.csv").write_text("text,label\ngood,-1\n")
    with pytest.raises(ValueError, match=r"labels in column 'label' must be classes .*; received -1\. .*test_split"):
        load(reviews, TEXTS, model=tokenizer)


def test_text_must_have_a_tokenizer_and_fill_a_block(reviews, tokenizer):
    with pytest.raises(ValueError, match=r"causal-lm must have a tokenizer; received model_name_or_path=None\."):
        load(reviews, "causal-lm")
    with pytest.raises(ValueError, match=r"a split must fill a block of 99 tokens; received 20 texts\. Lower"):
        load(reviews, "causal-lm", model=tokenizer, block_size=99)


@pytest.mark.parametrize(("name", "module"), [("digits", "sklearn"), ("mnist1d", "mnist1d"), ("some/data", "datasets")])
def test_missing_packages_name_the_extra(monkeypatch, name, module):
    for loaded in [key for key in sys.modules if key == module or key.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{module} must be installed .*`pip install hf-lottery\[recipes\]`"):
        load(name)


def test_importing_the_module_needs_none_of_the_extras():
    code = "import sys, data; print([m for m in ('datasets', 'sklearn', 'mnist1d') if m in sys.modules])"
    folder = str(Path(data.__file__).parent)
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True).stdout == "[]\n"


def test_arguments_come_from_the_command_line():
    line = ["--dataset_name", "fashion_mnist", "--augment", "--max_train_samples", "9", "--label_column_name", "y"]
    (args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(line)
    assert args == DataArguments("fashion_mnist", augment=True, max_train_samples=9, label_column_name="y")
    assert DataArguments().dataset_dir == "/usr/share/datasets/fashion-mnist"
