"""docs/mask-format.md: its examples are what the library writes, and a reader made from the page reads every type."""

import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import save
from sealed_files import sealed

from hf_lottery import Mask, SignedMask
from hf_lottery.masks.mask_series import MaskSeries

PAGE = Path(__file__).parents[2] / "docs" / "mask-format.md"
EXAMPLES = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)]


def read_tensors(data: bytes) -> dict[str, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    assert all(tensor["dtype"] == "U8" and len(tensor["shape"]) == 1 for tensor in header.values())
    spans = {name: [8 + length + at for at in tensor["data_offsets"]] for name, tensor in header.items()}
    return {name: data[begin:end] for name, (begin, end) in spans.items()}


def read_sequence(data: bytes, count: int, encoding: str) -> np.ndarray:
    size = -(-count // 8)
    if encoding == "zstd":
        assert data[:4] == bytes.fromhex("28b52ffd") and len(data) < size <= 64 * len(data)
        header = zstandard.get_frame_parameters(data)
        assert (header.content_size, header.dict_id) == (size, 0) and header.window_size <= 2**23
        data = zstandard.ZstdDecompressor().decompress(data)
    assert len(data) == size
    bits = np.array([data[i // 8] >> i % 8 & 1 for i in range(8 * size)], dtype=bool)
    assert not bits[count:].any()
    return bits[:count]


def read_folder(folder: Path, level: int | None = None) -> tuple[dict, dict]:
    """Masks and signs by name, as numpy arrays."""
    text = (folder / "mask_config.json").read_bytes().replace(b"\r\n", b"\n")
    begin, digest, _ = re.fullmatch(rb'(.*"text_sha256": ")([0-9a-f]{64})("\s*}\s*)', text, re.DOTALL).groups()
    assert hashlib.sha256(begin).hexdigest().encode() == digest
    config = json.loads(text)
    data = (folder / "mask.safetensors").read_bytes()
    assert config["format_version"] == 2 and config["bit_order"] == "little"
    assert config["sha256"] == hashlib.sha256(data).hexdigest()
    tensors, masks, signs = read_tensors(data), {}, {}
    for name, spec in config["tensors"].items():
        n = int(np.prod(spec["shape"], dtype=object))
        if config["mask_type"] == "series":
            mask = np.ones(n, bool)
            for number in range((config["levels"] - 1 if level is None else level) + 1):
                positions, encoding = np.flatnonzero(mask), spec["encoding"][number]
                if encoding == "constant":
                    bits = np.full(len(positions), spec["kept"][number] == len(positions))
                else:
                    bits = read_sequence(tensors[f"{name}.level-{number:02}"], len(positions), encoding)
                mask[positions] = bits
                assert mask.sum() == spec["kept"][number]
        else:
            mask = read_sequence(tensors[f"{name}.mask"], n, spec.get("encoding", "bits"))
            assert mask.sum() == spec["kept"]
        masks[name] = mask.reshape(spec["shape"])
    for name, spec in config.get("signs", {}).items():
        counts = masks.get(name, np.ones(spec["shape"], bool))
        negative = read_sequence(tensors[f"{name}.sign"], counts.sum(), "bits")
        zero = np.zeros(counts.sum(), bool)
        if spec["zeros"]:
            zero = read_sequence(tensors[f"{name}.zero"], counts.sum(), "bits")
        signs[name] = np.zeros(spec["shape"], np.int8)
        signs[name][counts] = np.where(zero, 0, np.where(negative, -1, 1))
    return masks, signs


def parse_bytes(text: str) -> bytes:
    if match := re.fullmatch(r"zstd\((.*) x (\d+)\)", text):
        return zstandard.ZstdCompressor().compress(bytes.fromhex(match[1]) * int(match[2]))
    return bytes.fromhex(text)


def write_example(folder: Path, example: dict) -> Path:
    """The files of an example, with what the page says of every file and nothing else."""
    example = dict(example)
    tensors = {
        name: torch.tensor(list(parse_bytes(text)), dtype=torch.uint8)
        for name, text in example.pop("mask.safetensors").items()
    }
    data = save(tensors)
    folder.mkdir()
    (folder / "mask.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    config = {"format_version": 2, "bit_order": "little", "sha256": digest, **example}
    (folder / "mask_config.json").write_bytes(sealed(config))
    return folder


FIRST = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1]]).bool()
LAST = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
COLUMN = torch.zeros(64, 64, dtype=torch.bool)
COLUMN[:, 0] = True
SIGNS = {
    "w": torch.tensor([[1, 0, 0], [-1, -1, 0], [0, 0, 1]], dtype=torch.int8),
    "b": torch.tensor([-1, 0, 1], dtype=torch.int8),
}
# What the words of each example describe.
MEANT = [
    Mask({"w": FIRST}),
    Mask({"d": COLUMN}),
    SignedMask(Mask({"w": FIRST}), SIGNS, medians={"w": 0.75, "b": 1.5}),
    MaskSeries([Mask({"w": torch.ones(3, 3, dtype=torch.bool)}), Mask({"w": FIRST}), Mask({"w": LAST})]),
]


@pytest.mark.parametrize(
    ("example", "meant"), list(zip(EXAMPLES, MEANT, strict=True)), ids=["bits", "zstd", "signs", "series"]
)
def test_the_examples_of_the_page(example, meant, tmp_path):
    folder = write_example(tmp_path / "page", example)
    assert type(meant).from_pretrained(folder) == meant
    meant.save_pretrained(tmp_path / "library")
    config = json.loads((tmp_path / "library/mask_config.json").read_text())
    assert {key: config[key] for key in example if key != "mask.safetensors"} == {
        key: value for key, value in example.items() if key != "mask.safetensors"
    }
    written = read_tensors((tmp_path / "library/mask.safetensors").read_bytes())
    assert written.keys() == example["mask.safetensors"].keys()
    for name, text in example["mask.safetensors"].items():
        data, expected = written[name], parse_bytes(text)
        if text.startswith("zstd"):
            data, expected = (zstandard.ZstdDecompressor().decompress(frame) for frame in (data, expected))
        assert data == expected
    signs = {"w": SIGNS["w"], "b": SIGNS["b"]} if example["mask_type"] == "signed" else {}
    for folder in (tmp_path / "page", tmp_path / "library"):
        masks, found = read_folder(folder)
        mask = meant.mask if isinstance(meant, SignedMask) else meant if isinstance(meant, Mask) else meant[-1]
        assert {name: array.tolist() for name, array in masks.items()} == {n: e.tolist() for n, e in mask.items()}
        assert {name: array.tolist() for name, array in found.items()} == {n: e.tolist() for n, e in signs.items()}


def random_masks(levels: int) -> list[Mask]:
    """Nested masks of parameters of many kinds: large enough for zstd, small, empty, never and wholly pruned."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"big": (90, 70), "odd": (5, 7), "empty": (0, 3), "scalar": (), "dense": (41,), "gone": (3, 3)}
    scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    scores["dense"] += 1
    scores["gone"] /= 10
    return [Mask({name: score >= 0.2 * level for name, score in scores.items()}) for level in range(levels)]


def test_the_readers_agree_on_random_files_of_every_type(tmp_path):
    masks = random_masks(5)
    signs = {name: torch.where(entry, 1, 0).to(torch.int8) for name, entry in masks[4].items()}
    signs["big"][::3] *= -1
    signs["odd"][0] = 0
    signed = SignedMask(masks[4], {**signs, "bias": torch.tensor([-1, 0, 1, 1, -1], dtype=torch.int8)})
    masks[4].save_pretrained(tmp_path / "binary")
    signed.save_pretrained(tmp_path / "signed")
    MaskSeries(masks).save_pretrained(tmp_path / "series")
    encodings = set()
    for kind in ("binary", "signed", "series"):
        for spec in json.loads((tmp_path / kind / "mask_config.json").read_text())["tensors"].values():
            encodings |= {(kind, name) for name in np.ravel(spec.get("encoding", "bits")).tolist()}
        levels = range(5) if kind == "series" else [None]
        for level in levels:
            found, found_signs = read_folder(tmp_path / kind, level)
            expected = masks[4 if level is None else level]
            assert Mask({name: torch.from_numpy(entry) for name, entry in found.items()}) == expected
            assert Mask.from_pretrained(tmp_path / kind, level=level) == expected
        if kind == "signed":
            assert {name: sign.tolist() for name, sign in found_signs.items()} == {
                name: sign.tolist() for name, sign in signed.items()
            }
    assert encodings == {
        ("binary", "bits"), ("binary", "zstd"), ("signed", "bits"), ("signed", "zstd"), ("series", "bits"),
        ("series", "zstd"), ("series", "constant"),
    }  # fmt: skip
