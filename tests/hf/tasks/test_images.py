"""Images: augmentation, image processors, sizes and channels, and folders that `datasets` wrote."""

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import ViTImageProcessorPil

from hf_lottery.hf.tasks.images import shift_and_flip
from hf_lottery.hf.tasks.paper_networks import LeNetConfig, LeNetForImageClassification


def test_augmentation_shifts_by_an_eighth_and_flips_training_images_only(load):
    digits = load("digits", augment=True)
    assert digits.train.augment and not digits.eval.augment
    torch.manual_seed(0)
    spot = torch.zeros(2, 16, 24)
    spot[:, 8, 12] = 1
    seen = {tuple(shift_and_flip(spot)[0].nonzero()[0].tolist()) for _ in range(600)}
    rows, columns = {row for row, _ in seen}, {column for _, column in seen}
    assert rows == {6, 7, 8, 9, 10}
    assert columns == {*range(9, 16), *range(8, 15)}  # 12 +- 3, and 23 minus that


def test_augmentation_keeps_content_and_repeats_edges():
    torch.manual_seed(0)
    image = torch.arange(64.0).view(1, 8, 8)
    for _ in range(50):
        moved = shift_and_flip(image)
        assert moved.shape == image.shape
        assert set(moved.flatten().tolist()) <= set(image.flatten().tolist())
        rows, columns = moved[0, :, 0].diff(), moved[0, 0].diff()
        assert (rows >= 0).all() and ((columns >= 0).all() or (columns <= 0).all())  # nothing wraps around
    signal = shift_and_flip(torch.ones(1, 1, 40))
    assert torch.equal(signal, torch.ones(1, 1, 40))


def test_augmentation_follows_torchs_seed(load):
    digits = load("digits", augment=True)
    torch.manual_seed(3)
    first = [digits.train[0]["pixel_values"] for _ in range(8)]
    torch.manual_seed(3)
    assert all(torch.equal(a, digits.train[0]["pixel_values"]) for a in first)
    assert any(not torch.equal(a, first[0]) for a in first)


@pytest.mark.parametrize("augment", [False, True])
def test_images_that_are_read_at_once_are_those_that_are_read_one_by_one(load, augment):
    digits = load("digits", augment=augment).train
    rows = [5, 900, 5, 17, 44]
    torch.manual_seed(6)
    alone = [digits[row] for row in rows]
    after = torch.rand(())
    torch.manual_seed(6)
    batch = digits.__getitems__(rows)
    assert torch.equal(torch.rand(()), after)
    for name, values in batch.columns.items():
        assert torch.equal(values, torch.stack([sample[name] for sample in alone]))
        assert values.is_contiguous() and values.dtype == alone[0][name].dtype


def test_decoded_images_are_read_at_once_as_samples(load, pictures):
    train = load(pictures).train
    for sample, row in zip(train.__getitems__([3, 0]), (3, 0), strict=True):
        assert torch.equal(sample["pixel_values"], train[row]["pixel_values"])


def test_imagefolder_gives_scaled_images_and_class_names(load, pictures):
    loaded = load(pictures)
    assert loaded.label_names == ("dark", "light") and (loaded.image_size, loaded.num_channels) == ((6, 10), 3)
    assert len(loaded.train) == 12 and len(loaded.eval) == 4
    for item in (loaded.train[0], loaded.train[11], loaded.eval[3]):
        expected = torch.tensor([2.0 * item["labels"] - 1, -0.6, 1.0])[:, None, None].expand(3, 6, 10)
        torch.testing.assert_close(item["pixel_values"], expected)
    batch = next(iter(DataLoader(loaded.train, batch_size=3, collate_fn=loaded.data_collator)))
    assert batch["pixel_values"].shape == (3, 3, 6, 10) and batch["labels"].tolist() == [0, 0, 0]


def test_images_are_brought_to_the_size_and_channels_asked_for(load, pictures):
    loaded = load(pictures, image_size=8, num_channels=1)
    assert loaded.train[0]["pixel_values"].shape == (1, 8, 8)
    assert loaded.config_kwargs["image_size"] == 8 and loaded.config_kwargs["num_channels"] == 1
    assert load(pictures, image_size=(4, 5)).train[0]["pixel_values"].shape == (3, 4, 5)


def test_the_models_image_processor_prepares_images(load, pictures, tmp_path):
    processor = ViTImageProcessorPil(size={"height": 12, "width": 12}, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    processor.save_pretrained(tmp_path / "vit")
    loaded = load(pictures, model=str(tmp_path / "vit"), image_size=8)
    assert loaded.train[0]["pixel_values"].shape == (3, 12, 12) and loaded.image_size == 12
    torch.testing.assert_close(loaded.train[0]["pixel_values"][:, 0, 0], torch.tensor([0.0, 0.2, 1.0]))
    assert type(loaded.processing_class).__name__ == "ViTImageProcessorPil"
    assert "image_size" not in loaded.config_kwargs


def test_a_model_without_image_processor_gets_plain_images(load, pictures, tmp_path, caplog):
    LeNetForImageClassification(LeNetConfig(image_size=4)).save_pretrained(tmp_path / "lenet")
    loaded = load(pictures, model=str(tmp_path / "lenet"), image_size=4)
    assert loaded.train[0]["pixel_values"].shape == (3, 4, 4) and loaded.processing_class is None
    assert "no image processor" in caplog.text


def test_drawn_images_keep_their_labels_although_folders_are_sorted(load, pictures):
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


def test_save_to_disk_folders_load_with_and_without_splits(load, tmp_path, caplog):
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


def test_an_image_column_must_hold_images(load, reviews):
    with pytest.raises(ValueError, match=r"image column 'text' must hold images; received str\."):
        load(reviews, image_column_name="text")
