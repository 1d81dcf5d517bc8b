"""The built-in data are what they claim, and damaged files of Fashion-MNIST are refused."""

import gzip
import random
import struct

import numpy as np
import pytest
import torch
from mnist1d import data as original
from sklearn.datasets import load_digits
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from hf_lottery.hf.tasks.paper_networks import LeNetConfig, LeNetForImageClassification, ResNetCifarConfig


def test_digits_are_the_real_ones_split_the_same_for_every_seed(load):
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


def test_pixels_are_averaged_over_squares(load):
    whole, small = load("digits"), load("digits", average_pixels=2, max_train_samples=50)
    assert small.train.images.shape == (50, 1, 4, 4) and len(small.train.labels) == 50
    same = load("digits", max_train_samples=50)
    assert torch.equal(small.train.labels, same.train.labels)  # the same samples
    for data, averaged in ((same.train, small.train), (whole.eval, small.eval)):
        squares = data.images.view(-1, 1, 4, 2, 4, 2)
        torch.testing.assert_close(averaged.images, squares.mean((3, 5)))


def test_digits_configure_and_train_a_network_through_the_trainer(load, tmp_path):
    digits = load("digits", max_train_samples=256, max_eval_samples=100)
    torch.manual_seed(0)
    config = LeNetConfig(**digits.config_kwargs)
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
        LeNetForImageClassification(config),
        args,
        train_dataset=digits.train,
        eval_dataset=digits.eval,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.85


def test_mnist1d_is_generated_by_its_defaults_and_leaves_the_random_state_alone(load, monkeypatch):
    made, make = [], original.make_dataset

    def make_once(args):
        made.append((args, make(args)))
        return made[-1][1]

    monkeypatch.setattr(original, "make_dataset", make_once)
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
    [(args, arrays)] = made
    assert vars(args) == vars(original.get_dataset_args())
    np.testing.assert_array_equal(signals.eval.images[:, 0, 0], arrays["x_test"].astype("float32"))
    batch = torch.stack([signals.train[i]["pixel_values"] for i in range(4)])
    for config in (LeNetConfig(**signals.config_kwargs), ResNetCifarConfig(**signals.config_kwargs)):
        model = AutoModelForImageClassification.from_config(config)
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


def test_fashion_mnist_reads_plain_and_gzip_files(load, fashion):
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
def test_damaged_idx_files_are_refused(load, fashion, file, damage, message):
    damage(fashion / file)
    with pytest.raises(ValueError, match=message + r".*apt-get install dataset-fashion-mnist"):
        load("fashion_mnist", dataset_dir=str(fashion))


def test_missing_idx_files_name_the_package(load, fashion, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset_dir must hold train-images.* or .*gz; received .*apt-get"):
        load("fashion_mnist", dataset_dir=str(tmp_path / "nowhere"))
    (fashion / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset_dir must hold t10k-labels-idx1-ubyte or"):
        load("fashion_mnist", dataset_dir=str(fashion))


def test_samples_are_drawn_by_the_seed(load):
    few, again, other = (load("digits", max_train_samples=50, max_eval_samples=20, seed=s) for s in (0, 0, 1))
    assert len(few.train) == 50 and len(few.eval) == 20
    assert torch.equal(few.train.images, again.train.images) and torch.equal(few.eval.labels, again.eval.labels)
    assert not torch.equal(few.train.images, other.train.images)
    everything = load("digits")
    assert all((everything.train.images == image).flatten(1).all(1).any() for image in few.train.images)
    assert torch.equal(load("digits", max_train_samples=9999).train.images, everything.train.images)
