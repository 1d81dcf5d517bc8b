"""Damaged and hostile tensors of mask files: lost or changed bytes, other tensors, and dishonest zstd frames."""

import json

import pytest
import torch
import zstandard
from damaged_masks import KINDS, READERS, Cases, Files, check_refused, make_masks, rename, tensor
from safetensors.torch import load

from hf_lottery import Mask

CASES = Cases()
case = CASES.add


def test_the_good_files_have_what_the_cases_change(good):
    assert "encoding" not in good["bits"][0]["tensors"]["w"]
    assert {good[kind][0]["tensors"]["w"]["encoding"] for kind in ("zstd", "signed")} == {"zstd"}
    assert good["series"][0]["tensors"]["w"]["encoding"] == ["constant", "zstd", "zstd", "zstd"]
    assert {"w.zero", "bias.zero"} < load(good["signed"][1]).keys()


# --- bytes that are lost or turned over ------------------------------------------------------------------------------
def header_end(data):
    return 8 + int.from_bytes(data[:8], "little")


def cut(size, unnoticed):
    def change(files):
        at = size(files.data) if callable(size) else size
        files.raw, files.unnoticed = files.data[:at], unnoticed

    return change


SIZES = {
    "0": 0, "1": 1, "7": 7, "8": 8, "40": 40, "header-1": lambda d: header_end(d) - 1, "header": header_end,
    "header+1": lambda d: header_end(d) + 1, "half": lambda d: len(d) // 2, "-9": -9, "-1": -1,
}  # fmt: skip
for label, size in SIZES.items():
    case(f"cut-{label}", "must be a safetensors file", cut(size, False))
    case(f"cut-{label}-unnoticed", "must have the sha256", cut(size, True))


def flip(find, unnoticed):
    def change(files):
        data = bytearray(files.data)
        data[find(files)] ^= 1
        files.raw, files.unnoticed = bytes(data), unnoticed

    return change


def first_byte(files):
    header = json.loads(files.data[8 : header_end(files.data)])
    return header_end(files.data) + header[files.key]["data_offsets"][0]


FLIPS = {
    "length": (lambda f: 0, "safetensors file"),
    "high-length": (lambda f: 7, "safetensors file"),
    "brace": (lambda f: 8, "safetensors file"),
    "name": (lambda f: f.data.index(f.key.encode()), "must hold exactly the tensors"),
    "dtype": (lambda f: f.data.index(b'"U8"') + 1, "safetensors file"),
    "width": (lambda f: f.data.index(b'"U8"') + 2, "safetensors file"),
    "offset": (lambda f: f.data.index(b"offsets") + 11, "safetensors file"),
    "first": (first_byte, "must keep|must be a zstd frame|one whole zstd frame"),
    "sixth": (lambda f: first_byte(f) + 5, "must keep|must be a zstd frame|one whole zstd frame|padding"),
    "last": (lambda f: -1, "must|padding"),
}
for label, (find, message) in FLIPS.items():
    case(f"flip-{label}", message, flip(find, False))
    case(f"flip-{label}-unnoticed", "must have the sha256", flip(find, True))


# --- the tensors -----------------------------------------------------------------------------------------------------
def drop(files):
    del files.tensors[files.key]


def add(files):
    files.tensors["../../x"] = torch.zeros(1, dtype=torch.uint8)


case("tensor-lost", "must hold exactly the tensors", drop)
case("tensor-more", "must hold exactly the tensors", add)
for dtype in (torch.int8, torch.bool, torch.float32, torch.int64):
    case(f"dtype-{dtype}", "must be uint8", tensor(lambda t, dtype=dtype: t.to(dtype)))
for label, function in {
    "empty": lambda t: t[:0], "scalar": lambda t: t[0], "row": lambda t: t[None], "column": lambda t: t[:, None],
}.items():  # fmt: skip
    case(f"axes-{label}", "must be uint8|at least a byte", tensor(function))
case("longer", "must be uint8|zstd frame", tensor(lambda t: torch.cat([t, t[:1]])))
case("shorter", "must be uint8|zstd frame", tensor(lambda t: t[:-1]))


def or_last(bit):
    def function(packed):
        packed = packed.clone()
        packed[-1] |= bit
        return packed

    return function


for bit in (8, 64, 128):
    case(f"padding-{bit}", "padding bits of 'w.mask' must be zero", tensor(or_last(bit)), ("bits",))
    case(f"padding-{bit}", "padding bits of 'bias.sign' must be zero", tensor(or_last(bit), "bias.sign"), ("signed",))
case("ones", "padding bits", tensor(lambda t: torch.full_like(t, 255)), ("bits",))
case("zeros", "must keep . weights; received 0|must keep .* received 0", tensor(torch.zeros_like), ("bits",))


# --- zstd frames -----------------------------------------------------------------------------------------------------
def frame_of(data, **options):
    return zstandard.ZstdCompressor(level=1, **options).compress(data)


def hand_made(content_size, blocks, *, window=None, dictionary=None, reserved=0):
    """A frame of RLE blocks, of 128 KiB of zeros each, behind a header that may lie."""
    single = window is None
    descriptor = (2 << 6) | (single << 5) | (reserved << 3) | (0 if dictionary is None else 1)
    header = b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + (b"" if single else bytes([window]))
    header += b"" if dictionary is None else bytes([dictionary])
    body = b"".join(
        (int(index == blocks - 1) | 1 << 1 | (2**17) << 3).to_bytes(3, "little") + b"\0" for index in range(blocks)
    )
    return header + content_size.to_bytes(4, "little") + body


def replace_frame(make):
    """Put ``make(old frame, decompressed bytes)`` in the place of the frame."""

    def change(files):
        old = files.tensors[files.key].numpy().tobytes()
        frame = make(old, zstandard.ZstdDecompressor().decompress(old))
        files.tensors[files.key] = torch.frombuffer(bytearray(frame), dtype=torch.uint8)

    return change


SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
COMPRESSED = ("zstd", "signed", "series")
FRAMES = {
    "trailing-byte": (lambda f, d: f + b"\0", "one whole zstd frame"),
    "trailing-frame": (lambda f, d: f + frame_of(b""), "one whole zstd frame"),
    "trailing-skippable": (lambda f, d: f + SKIPPABLE, "one whole zstd frame"),
    "leading-skippable": (lambda f, d: SKIPPABLE + f, "must be a zstd frame of"),
    "only-skippable": (lambda f, d: b"\x50\x2a\x4d\x18" + len(d).to_bytes(4, "little") + b"a" * 40, "a zstd frame of"),
    "one-byte-more": (lambda f, d: frame_of(d + b"\0"), "must be a zstd frame of"),
    "one-byte-less": (lambda f, d: frame_of(d[:-1]), "must be a zstd frame of"),
    "no-size": (lambda f, d: frame_of(d, write_content_size=False), "must be a zstd frame of"),
    "half": (lambda f, d: f[: len(f) // 2], "one whole zstd frame"),
    "header-only": (lambda f, d: f[:7], "one whole zstd frame|must be a zstd frame of|must be uint8"),
    "no-frame": (lambda f, d: d[: len(f)], "one whole zstd frame|must be a zstd frame of"),
    "gzip": (lambda f, d: b"\x1f\x8b\x08\x00" + f[4:], "one whole zstd frame|must be a zstd frame of"),
    "bytes-as-they-are": (lambda f, d: d, "bits as zstd; received U8"),
    "claims-gigabytes": (lambda f, d: hand_made(2**32 - 1, 4), "must be a zstd frame of"),
    "expands-to-gigabytes": (lambda f, d: hand_made(len(d), 20), "one whole zstd frame"),
    "huge-window": (lambda f, d: hand_made(len(d), 1, window=(31 - 10) << 3), "window of at most|Frame requires"),
    "16-MiB-window": (lambda f, d: hand_made(len(d), 1, window=(24 - 10) << 3), "with a window of at most 8388608"),
    "dictionary": (lambda f, d: hand_made(len(d), 1, dictionary=7), "without a dictionary"),
    "reserved-bit": (lambda f, d: hand_made(len(d), 1, reserved=1), "one whole zstd frame"),
    "no-blocks": (lambda f, d: hand_made(len(d), 0) + b"\0" * 8, "one whole zstd frame"),
    "other-bits": (lambda f, d: frame_of(bytes([d[0] ^ 1]) + d[1:]), "must keep"),
}
for label, (make, message) in FRAMES.items():
    case(f"frame-{label}", message, replace_frame(make), COMPRESSED)
case(
    "frame-padding",
    "padding bits of",
    replace_frame(lambda f, d: frame_of(d[:-1] + bytes([d[-1] | 128]))),
    COMPRESSED,
)


def grow(blocks, packed):
    """A shape as large as a frame of ``blocks`` blocks may claim, and the frame, which expands to far more."""

    def change(files):
        frame = hand_made(packed(blocks), blocks)
        files.tensors[files.key] = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
        files.spec["shape"] = [8 * packed(blocks)]
        if files.kind == "series":
            files.spec["kept"] = [8 * packed(blocks), *files.spec["kept"][1:]]
        if files.kind == "signed":
            files.config["signs"]["w"]["shape"] = files.spec["shape"]

    return change


# 40 kB that claim the most they may, 2.5 MB, and expand to 1.3 GB; the same that claim 1.3 GB, which is refused unread.
case("bomb-within-the-ratio", "one whole zstd frame", grow(10_000, lambda blocks: 64 * 4 * blocks), COMPRESSED)
case("bomb-beyond-the-ratio", "must be uint8|at least a byte for", grow(10_000, lambda n: n * 2**17), COMPRESSED)


# --- the tests -----------------------------------------------------------------------------------------------------
def test_there_are_many_cases():
    assert len(CASES) >= 200 and len({case.id for case in CASES}) == len(CASES)


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize(("kind", "change", "message"), CASES)
def test_a_changed_file_is_refused(good, kind, change, message, tmp_path, monkeypatch):
    check_refused(good, kind, change, message, tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mask_config.json", "mask.safetensors"])
def test_a_missing_file(good, kind, name, tmp_path):
    Files(kind, *good[kind]).write(tmp_path / "m")
    (tmp_path / "m" / name).unlink()
    for reader in READERS.get(kind, [Mask]):
        with pytest.raises(FileNotFoundError, match=f"must hold {name}"):
            reader.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_file_is_read(good, kind, tmp_path):
    """The machinery of this file alone makes no file bad."""
    files = Files(kind, *good[kind])
    files.config["unknown"] = {"a": [1]}
    files.write(tmp_path / "m")
    assert Mask.from_pretrained(tmp_path / "m") == make_masks()[3 if kind == "series" else 2]


@pytest.mark.parametrize("name", ["../../w", "/etc/passwd", "", "w.mask", "os.system"])
def test_a_name_is_only_a_name(good, name, tmp_path):
    files = Files("series", *good["series"])
    rename(name, True)(files)
    files.write(tmp_path / "m")
    assert torch.equal(Mask.from_pretrained(tmp_path / "m")[name], make_masks()[3]["w"])
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
