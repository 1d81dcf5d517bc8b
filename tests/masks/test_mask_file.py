import hashlib
import json

import pytest
import torch
import zstandard
from safetensors.torch import load_file, save
from sealed_files import sealed

from hf_lottery import Mask, MaskFileError, SignedMask
from hf_lottery.masks.file import read_mask, write_mask
from hf_lottery.storage.encoding import encode, pack_bits, unpack_bits


@pytest.fixture
def mask():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (5, 7), "b.weight": (16,), "empty": (0, 3), "scalar": ()}
    return Mask({name: torch.rand(shape, generator=generator) > 0.5 for name, shape in shapes.items()})


@pytest.fixture
def folder(mask, tmp_path):
    mask.save_pretrained(tmp_path / "ticket")
    return tmp_path / "ticket"


def rewrite(folder, change=None, tensors=None):
    """Change the config, or the tensors with a matching checksum, as an attacker would."""
    config = json.loads((folder / "mask_config.json").read_text())
    if tensors is not None:
        data = tensors if isinstance(tensors, bytes) else save(tensors)
        (folder / "mask.safetensors").write_bytes(data)
        config["sha256"] = hashlib.sha256(data).hexdigest()
    if change:
        change(config)
    (folder / "mask_config.json").write_bytes(sealed(config))


def test_round_trip(mask, folder):
    assert Mask.from_pretrained(folder) == mask
    assert list(Mask.from_pretrained(folder)) == list(mask)


def test_bits_are_row_major_and_little_endian():
    mask = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    assert pack_bits(mask).tolist() == [0b00011001, 0b1]
    assert torch.equal(unpack_bits(pack_bits(mask), (3, 3)), mask)


def test_one_bit_a_weight(tmp_path):
    Mask({"w": torch.rand(1000, 1000) > 0.8}).save_pretrained(tmp_path / "t")
    assert (tmp_path / "t/mask.safetensors").stat().st_size < 125_000 + 500


def encodings(folder):
    return [spec.get("encoding") for spec in json.loads((folder / "mask_config.json").read_text())["tensors"].values()]


def test_compression_where_it_pays(tmp_path):
    generator = torch.Generator().manual_seed(0)
    mask = Mask(
        {
            "sparse": torch.rand(300, 300, generator=generator) > 0.9,
            "even": torch.rand(300, 300, generator=generator) > 0.5,
            "small": torch.rand(9, generator=generator) > 0.9,
            "dense": torch.ones(300, 300, dtype=torch.bool),  # a frame so small that a reader would distrust it
        }
    )
    mask.save_pretrained(tmp_path / "small")
    write_mask(tmp_path / "fast", mask, compress=False)
    assert encodings(tmp_path / "small") == ["zstd", None, None, None]
    assert encodings(tmp_path / "fast") == [None] * 4
    assert Mask.from_pretrained(tmp_path / "small") == Mask.from_pretrained(tmp_path / "fast") == mask
    share = mask["sparse"].double().mean()
    entropy = -(share * share.log2() + (1 - share) * (1 - share).log2())
    frame = load_file(tmp_path / "small/mask.safetensors")["sparse.mask"]
    assert len(frame) < 1.12 * entropy * mask["sparse"].numel() / 8


def test_a_frame_at_the_limit_of_belief():
    packed = torch.zeros(1 << 12, dtype=torch.uint8)
    frame = len(zstandard.ZstdCompressor(level=17).compress(packed.numpy().tobytes()))
    assert encode(packed[: 64 * frame], compress=True)[1] == "zstd"
    assert encode(packed[: 64 * frame + 1], compress=True)[1] == "bits"


def test_a_file_of_before_there_were_encodings(tmp_path):
    """Byte for byte what the first writer of version 1 wrote, but for the version of the library."""
    data = (
        b'{"__metadata__":{"hf_lottery_format":"1","format":"pt"},"w.mask":{"dtype":"U8","shape":[2],'
        b'"data_offsets":[0,2]}}'
    )
    data = len(data).to_bytes(8, "little") + data + b"\x19\x01"
    config = {
        "format_version": 1,
        "library_name": "hf_lottery",
        "library_version": "0.1.0",
        "mask_type": "binary",
        "bit_order": "little",
        "sparsity": 5 / 9,
        "tensors": {"w": {"shape": [3, 3], "kept": 4}},
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (tmp_path / "mask.safetensors").write_bytes(data)
    (tmp_path / "mask_config.json").write_text(json.dumps(config, indent=2) + "\n")
    assert Mask.from_pretrained(tmp_path)["w"].tolist() == [
        [True, False, False],
        [True, True, False],
        [False, False, True],
    ]


def test_one_mask_has_no_levels(folder):
    for level in (0, -1, 7):
        with pytest.raises(ValueError, match=f"level must come with a series of masks; received {level} .*Omit it"):
            Mask.from_pretrained(folder, level=level)


def test_signs_of_a_binary_mask_are_a_key_like_others(mask, folder):
    rewrite(folder, lambda config: config.update(signs=5, levels="x"))
    assert Mask.from_pretrained(folder) == mask
    with pytest.raises(MaskFileError, match="must hold signs; received a mask without"):
        SignedMask.from_pretrained(folder)


def test_signs_are_not_decoded_for_a_mask(tmp_path):
    mask = Mask({"w": torch.tensor([True, True, False])})
    SignedMask(mask, {"w": torch.tensor([1, -1, 0], dtype=torch.int8)}).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "mask.safetensors")
    rewrite(tmp_path, tensors={**tensors, "w.sign": tensors["w.sign"] * 0 + 255})
    assert Mask.from_pretrained(tmp_path) == mask
    with pytest.raises(MaskFileError, match="padding"):
        SignedMask.from_pretrained(tmp_path)


def test_saving_again_replaces_and_keeps_other_files(mask, folder):
    (folder / "notes.txt").write_text("mine")
    (~mask).save_pretrained(folder)
    assert Mask.from_pretrained(folder) == ~mask
    assert sorted(file.name for file in folder.iterdir()) == ["mask.safetensors", "mask_config.json", "notes.txt"]
    assert [file.name for file in folder.parent.iterdir()] == ["ticket"]


def test_the_config_says_what_is_in_it(mask, tmp_path):
    write_mask(tmp_path / "m", mask, extra={"level": 3})
    config = read_mask(tmp_path / "m")[1]
    assert (config["level"], config["format_version"], config["sparsity"]) == (3, 2, pytest.approx(mask.sparsity))
    assert config["tensors"]["a.weight"] == {"shape": [5, 7], "kept": int(mask["a.weight"].sum())}
    with pytest.raises(ValueError, match=r"must not shadow the format's own; received \['sha256'\]"):
        write_mask(tmp_path / "n", mask, extra={"sha256": "0"})
    with pytest.raises(ValueError, match=r"must not shadow the format's own; received \['levels', 'signs'\]"):
        write_mask(tmp_path / "n", mask, extra={"signs": {}, "levels": 3})
    assert not (tmp_path / "n").exists()


def test_the_config_is_written_last(mask, tmp_path, monkeypatch):
    def fail_for_the_config(source, target):
        if target.name == "mask_config.json":
            raise OSError("disk full")
        source.rename(target)

    monkeypatch.setattr("os.replace", fail_for_the_config)
    with pytest.raises(OSError, match="disk full"):
        mask.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mask.safetensors"]


@pytest.mark.parametrize("name", ["mask_config.json", "mask.safetensors"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold {name}"):
        Mask.from_pretrained(folder)


@pytest.mark.parametrize("size", [0, 4, 40, -1])
def test_truncated_file(folder, size):
    data = (folder / "mask.safetensors").read_bytes()
    (folder / "mask.safetensors").write_bytes(data[:size])
    with pytest.raises(MaskFileError, match="must have the sha256"):
        Mask.from_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 3, "at most 2; received 3. Install a newer"),
        ("format_version", 0, "positive integer; received 0"),
        ("format_version", True, "positive integer; received True"),
        ("mask_type", "ternary", "'binary' or 'signed' or 'series'; received 'ternary'"),
        ("bit_order", "big", "'little'; received 'big'"),
        ("sha256", 5, "sha256 must be a string; received 5"),
        ("tensors", {}, "at least one parameter; received {}"),
        ("tensors", [], "at least one parameter"),
        ("tensors", ["a"], "at least one parameter"),
        ("tensors", {"a": 3}, "shape of 'a' must be a list of sizes; received None"),
        ("tensors", {"a": {"shape": [2.0], "kept": 1}}, "list of sizes"),
        ("tensors", {"a": {"shape": [-2], "kept": 1}}, "list of sizes"),
        ("tensors", {"a": {"shape": [2], "kept": 3}}, "kept of 'a' must be a count within"),
        ("tensors", {"a": {"shape": [2], "kept": -1}}, "kept of 'a' must be a count within"),
        ("tensors", {"a": {"shape": [2], "kept": True}}, "kept of 'a' must be a count within"),
        ("tensors", {"../x": {"shape": [2], "kept": 1}}, "must hold exactly the tensors"),
        ("tensors", {"a": {"shape": [0, 2**70], "kept": 0}}, "list of sizes"),
        ("tensors", {"a": {"shape": [0], "kept": 0}}, "must have at least one weight"),
    ],
)
def test_bad_config(folder, key, value, message):
    rewrite(folder, lambda config: config.update({key: value}))
    with pytest.raises(MaskFileError, match=message):
        Mask.from_pretrained(folder)


def test_config_that_is_no_json(folder):
    cases = [("{", "must be JSON"), ("[" * 100_000, "must be JSON"), ("[1]", "must hold a JSON object; received list")]
    for text, message in cases:
        (folder / "mask_config.json").write_text(text)
        with pytest.raises(MaskFileError, match=message):
            Mask.from_pretrained(folder)


def test_huge_config(folder, monkeypatch):
    monkeypatch.setattr("hf_lottery.storage.json_files.MOST_BYTES", 100)
    with pytest.raises(MaskFileError, match="must be at most 100 bytes; received"):
        Mask.from_pretrained(folder)


def test_huge_shape_costs_no_memory(folder):
    def grow(config):
        config["tensors"]["a.weight"]["shape"] = [2**40, 2**20]

    rewrite(folder, grow)
    with pytest.raises(MaskFileError, match="must be uint8"):
        Mask.from_pretrained(folder)


def test_wrong_count_padding_dtype_and_names(folder):
    good = load_file(folder / "mask.safetensors")
    flipped = good["a.weight.mask"].clone()
    flipped[0] ^= 1
    padded = good["a.weight.mask"].clone()
    padded[-1] |= 128
    cases = [
        ({**good, "a.weight.mask": flipped}, "must keep"),
        ({**good, "a.weight.mask": padded}, "padding bits of 'a.weight.mask' must be zero"),
        ({**good, "a.weight.mask": good["a.weight.mask"].to(torch.int8)}, "received I8"),
        ({**good, "more.mask": flipped}, "received extra"),
        ({name: tensor for name, tensor in good.items() if name != "empty.mask"}, "missing"),
        (b"not safetensors", "must be a safetensors file"),
    ]
    for tensors, message in cases:
        rewrite(folder, tensors=tensors)
        with pytest.raises(MaskFileError, match=message):
            Mask.from_pretrained(folder)
