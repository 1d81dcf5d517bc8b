import hashlib
import json
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from sealed_files import sealed

import hf_lottery.storage.encoding
from hf_lottery import Mask, MaskFileError, MaskMismatchError, SignedMask
from hf_lottery.masks.mask_series import MaskSeries


def nested(levels: int, step: float = 0.2) -> list[Mask]:
    """Level 0 is dense; each later one keeps all but ``step`` of the rest, by random scores."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"big": (200, 300), "odd": (3, 7), "empty": (0, 3), "scalar": (), "dense": (1000,)}
    scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    scores["dense"] += 1
    return [Mask({name: s >= 1 - (1 - step) ** level for name, s in scores.items()}) for level in range(levels)]


@pytest.fixture
def masks():
    return nested(11)


@pytest.fixture
def folder(masks, tmp_path):
    MaskSeries(masks).save_pretrained(tmp_path / "series")
    return tmp_path / "series"


def test_a_series_is_a_sequence_of_its_masks(masks):
    series = MaskSeries(iter(masks))
    assert len(series) == 11 and list(series) == masks and list(reversed(series)) == masks[::-1]
    assert (series[0], series[-1], series[-11], series[np.int64(3)]) == (masks[0], masks[10], masks[0], masks[3])
    assert series[2:9:3] == (masks[2], masks[5], masks[8]) and series[:0] == ()
    assert masks[4] in series and series.index(masks[4]) == 4
    assert list(series[0]) == list(masks[0])
    assert series.sparsities == tuple(mask.sparsity for mask in masks)
    for index in (11, -12):
        with pytest.raises(IndexError, match=f"a level must be from 0 to 10; received {index}"):
            series[index]
    with pytest.raises(TypeError):
        series["big"]


def test_two_masks_are_in_memory_while_a_series_is_made():
    alive = []

    def made():
        for mask in nested(6):
            mask = Mask(mask)  # which nothing else holds
            alive.append(weakref.ref(mask))
            assert sum(one() is not None for one in alive) <= 2
            yield mask
            del mask

    assert len(MaskSeries(made())) == 6 == len(alive)


def test_a_series_until_a_level(masks):
    series = MaskSeries(masks)
    assert list(series.until(4)) == masks[:5] and series.until(-1) == series and list(series.until(0)) == masks[:1]
    with pytest.raises(IndexError, match="must be from 0 to 10; received 11"):
        series.until(11)


def test_a_series_is_immutable(masks):
    series = MaskSeries(masks)
    before = masks[3]["big"].clone()
    masks[3]["big"].fill_(False)
    series[3]["big"].fill_(False)
    assert torch.equal(series[3]["big"], before)
    with pytest.raises(TypeError):
        series[3] = masks[4]
    with pytest.raises(TypeError, match="unhashable"):
        hash(series)


def test_equality_is_by_value(masks):
    assert MaskSeries(masks) == MaskSeries(nested(11)) and MaskSeries(masks) != masks
    assert MaskSeries(masks) != MaskSeries(masks[:-1])
    assert MaskSeries(masks) != MaskSeries([*masks[:-1], masks[-2]])
    dense = Mask({"w": torch.ones(4, dtype=torch.bool)})
    one, other = (Mask({"w": torch.tensor(bits).bool()}) for bits in ([1, 0, 1, 0], [1, 0, 0, 1]))
    assert MaskSeries([dense, one]) != MaskSeries([dense, other])  # the counts are equal
    assert MaskSeries([dense]) != MaskSeries([Mask({"v": dense["w"]})])
    assert MaskSeries([dense]) != MaskSeries([Mask({"w": dense["w"].view(2, 2)})])


def test_repr(masks):
    assert repr(MaskSeries(masks)) == "MaskSeries(11 levels of 5 parameters, 61,022 weights, sparsity 0.0000 to 0.8784)"


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        ([], ValueError, "at least one mask; received none"),
        ([{"w": [1, 1]}, 3], TypeError, "level 1 of a series must be a Mask; received int"),
        ([{"w": [1, 1]}, {"v": [1, 1]}], MaskMismatchError, "received 'v' in one only of levels 0 and 1"),
        ([{"w": [1, 1]}, {"w": [1, 1], "v": [1]}], MaskMismatchError, "received 'v' in one only of levels 0 and 1"),
        ([{"w": [1, 1]}, {"w": [[1, 1]]}], MaskMismatchError, r"one shape for 'w'; received \[2\] and \[1, 2\]"),
        (
            [{"w": [1, 0, 0]}, {"w": [1, 1, 1]}],
            ValueError,
            "only what the one before keeps; received 2 other weights of 'w' at level 1. .*densest first",
        ),
        ([{"w": [1, 1]}, {"w": [1, 0]}, {"w": [0, 1]}], ValueError, "1 other weights of 'w' at level 2"),
    ],
)
def test_masks_that_are_no_series(levels, error, message):
    made = [
        Mask({name: torch.tensor(bits).bool() for name, bits in level.items()}) if isinstance(level, dict) else level
        for level in levels
    ]
    with pytest.raises(error, match=message):
        MaskSeries(made)


def test_the_file_gives_back_the_same(masks, folder):
    loaded = MaskSeries.from_pretrained(folder)
    assert loaded == MaskSeries(masks) and list(loaded) == masks
    assert list(loaded[0]) == list(masks[0])
    for level, mask in enumerate(masks):
        assert Mask.from_pretrained(folder, level=level) == mask
    assert Mask.from_pretrained(folder) == masks[-1]
    loaded.save_pretrained(folder.parent / "again")
    one, other = (load_file(path / "mask.safetensors") for path in (folder, folder.parent / "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_series_of_one_and_of_more_than_a_hundred(tmp_path):
    flags = torch.ones(130, dtype=torch.bool)
    masks = [Mask({"w": torch.arange(130) >= level}) for level in range(120)]
    for count in (1, 120):
        MaskSeries(masks[:count]).save_pretrained(tmp_path / str(count))
        assert list(MaskSeries.from_pretrained(tmp_path / str(count))) == masks[:count]
    assert {"w.level-07", "w.level-100"} < load_file(tmp_path / "120/mask.safetensors").keys()
    assert torch.equal(Mask.from_pretrained(tmp_path / "1")["w"], flags)


def test_ten_levels_take_little_more_than_three_bits_a_weight(masks, folder):
    size = (folder / "mask.safetensors").stat().st_size
    stored = load_file(folder / "mask.safetensors")
    assert 8 * size / masks[0].weights < 4
    assert "big.level-00" not in stored  # dense: nothing is stored
    assert [key for key in stored if "dense" in key] == ["dense.level-00"]  # never pruned: its shape is borne out
    assert not [key for key in stored if "empty" in key]


def test_a_level_that_is_not_there(folder):
    for level in (11, -1, 10**9, True, 1.0, "1"):
        with pytest.raises(
            ValueError, match=f"level must be a whole number from 0 to 10, as .* holds 11; received {level!r}"
        ):
            Mask.from_pretrained(folder, level=level)


def test_one_level_reads_no_later_one_and_builds_no_other_mask(masks, folder, monkeypatch):
    tensors = load_file(folder / "mask.safetensors")
    tensors["big.level-05"] = tensors["big.level-05"] * 0
    rewrite(folder, tensors)
    sizes = []
    unpack = hf_lottery.storage.encoding.unpack_bits
    monkeypatch.setattr(hf_lottery.storage.encoding, "unpack_bits", lambda p, s: (sizes.append(s[0]), unpack(p, s))[1])
    assert Mask.from_pretrained(folder, level=4) == masks[4]
    # One array a level, no longer than the level before keeps weights.
    assert [size for size in sizes if size > 1000] == [int(masks[level]["big"].sum()) for level in (3, 2, 1, 0)]
    with pytest.raises(MaskFileError):
        Mask.from_pretrained(folder, level=5)
    with pytest.raises(MaskFileError):
        MaskSeries.from_pretrained(folder)


def rewrite(folder, tensors):
    config, data = json.loads((folder / "mask_config.json").read_text()), save(tensors)
    (folder / "mask.safetensors").write_bytes(data)
    (folder / "mask_config.json").write_bytes(sealed({**config, "sha256": hashlib.sha256(data).hexdigest()}))


def test_other_masks_are_no_series(masks, folder, tmp_path):
    masks[0].save_pretrained(tmp_path / "m")
    with pytest.raises(MaskFileError, match="must hold a series; received a binary mask. Load it with Mask"):
        MaskSeries.from_pretrained(tmp_path / "m")
    with pytest.raises(MaskFileError, match="must hold signs"):
        SignedMask.from_pretrained(folder)


def test_an_error_leaves_no_folder(masks, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lottery.masks.file.save", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        MaskSeries(masks).save_pretrained(tmp_path / "s")
    assert not list(tmp_path.iterdir())
