"""Damaged and hostile mask files: each raises one clear error, soon, in memory bounded by the size of the files.

The files of a good mask of each kind are changed in one place; the checksum is made to fit, as an attacker would,
except where the case is named ``unnoticed``. Every case names the check that has to find it.
"""

import copy
import hashlib
import json
import pickle
import resource
import sys
import time
import tracemalloc

import pytest
import torch
import zstandard
from safetensors.torch import load, save

from hf_lottery import Mask, MaskFileError, SignedMask
from hf_lottery.masks.file import write_mask
from hf_lottery.masks.mask_series import MaskSeries

WEIGHTS = 64 * 32 + 3  # a whole number of bytes would have no padding
PACKED = -(-WEIGHTS // 8)
KINDS = ("bits", "zstd", "signed", "series")
READERS = {"signed": [SignedMask], "series": [MaskSeries, Mask]}
KEY = {"bits": "w.mask", "zstd": "w.mask", "signed": "w.mask", "series": "w.level-01"}


def make_masks() -> list[Mask]:
    score = torch.arange(WEIGHTS) * 37 % 101 / 101  # regular, so that it compresses at every level
    return [Mask({"w": score >= least, "b": torch.arange(5) >= 5 * least}) for least in (0.0, 0.3, 0.5, 0.8)]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Config and bytes of a good file of each kind."""
    root, masks = tmp_path_factory.mktemp("good"), make_masks()
    signs = {name: entry.to(torch.int8) * (1 - 2 * (torch.arange(len(entry)) % 3 == 0).to(torch.int8)) for name, entry
             in masks[2].items()}  # fmt: skip
    signs["w"][masks[2]["w"].nonzero()[0]] = 0
    write_mask(root / "bits", masks[2], compress=False)
    masks[2].save_pretrained(root / "zstd")
    extra = torch.tensor([1, -1, 0], dtype=torch.int8)
    SignedMask(masks[2], {**signs, "bias": extra}, medians={"w": 0.5}).save_pretrained(root / "signed")
    MaskSeries(masks).save_pretrained(root / "series")
    files = {}
    for kind in KINDS:
        for reader in READERS.get(kind, [Mask]):
            reader.from_pretrained(root / kind)
        config = json.loads((root / kind / "mask_config.json").read_text())
        files[kind] = config, (root / kind / "mask.safetensors").read_bytes()
    return files


def test_the_good_files_have_what_the_cases_change(good):
    assert "encoding" not in good["bits"][0]["tensors"]["w"]
    assert {good[kind][0]["tensors"]["w"]["encoding"] for kind in ("zstd", "signed")} == {"zstd"}
    assert good["series"][0]["tensors"]["w"]["encoding"] == ["constant", "zstd", "zstd", "zstd"]
    assert {"w.zero", "bias.zero"} < load(good["signed"][1]).keys()


# A case is (name, kinds, change, message). ``change`` gets a Files to work on.
class Files:
    """What a case may change: the config, the tensors, or instead of them the bytes of a file."""

    def __init__(self, kind, config, data):
        self.kind, self.config, self.data = kind, copy.deepcopy(config), data
        self.tensors = load(data)
        self.text = self.raw = None
        self.unnoticed = False

    @property
    def key(self):
        return KEY[self.kind]

    @property
    def spec(self):
        return self.config["tensors"]["w"]

    def write(self, folder):
        if self.raw is None:
            self.raw = save({name: tensor.contiguous() for name, tensor in self.tensors.items()})
        if not self.unnoticed and "sha256" in self.config and self.config["sha256"] == digest(self.data):
            self.config["sha256"] = digest(self.raw)
        folder.mkdir()
        (folder / "mask.safetensors").write_bytes(self.raw)
        text = json.dumps(self.config).encode() if self.text is None else self.text
        (folder / "mask_config.json").write_bytes(text)


def digest(data):
    return hashlib.sha256(data).hexdigest()


CASES = []


def case(name, message, change, kinds=KINDS):
    CASES.extend(pytest.param(kind, change, message, id=f"{kind}-{name}") for kind in kinds)


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


# --- the config ------------------------------------------------------------------------------------------------------
def text(value):
    def change(files):
        files.text = value

    return change


TEXTS = {
    "empty": b"", "open": b"{", "null": b"null", "list": b"[1]", "string": b'"x"', "deep-list": b"[" * 100_000,
    "deep-object": b'{"a":' * 100_000, "no-utf8": b'{"\xff\xfe": 1}', "digits": b'{"a": ' + b"1" * 5000 + b"}",
    "half": b'{"format_version": 1, "mask_ty', "trailing": b"{} {}", "pickle": pickle.dumps(print),
}  # fmt: skip
for label, value in TEXTS.items():
    case(f"text-{label}", "must be JSON|must hold a JSON object", text(value), ("bits",))
case("text-long", "must be at most 16777216 bytes", text(b" " * (2**24 + 1)), ("bits",))


def put(value, *path):
    """Set a value deep in the config; ``path`` may start with ``spec``."""

    def change(files):
        at = files.spec if path[0] == "spec" else files.config
        keys = path[1:] if path[0] == "spec" else path
        for key in keys[:-1]:
            at = at[key]
        if value is put:
            del at[keys[-1]]
        else:
            at[keys[-1]] = value

    return change


for label, value in {"0": 0, "-1": -1, "text": "1", "float": 1.0, "bool": True, "null": None, "lost": put}.items():
    case(f"version-{label}", "format_version must be a positive integer", put(value, "format_version"), ("bits",))
for value in (2, 10**30):
    case(f"version-{value}", "Install a newer hf_lottery", put(value, "format_version"), ("bits", "series"))
for label, value in {"unknown": "ternary", "list": ["binary"], "null": None, "lost": put}.items():
    case(f"type-{label}", "mask_type must be", put(value, "mask_type"))
for label, value in {"big": "big", "lost": put}.items():
    case(f"order-{label}", "bit_order must be 'little'", put(value, "bit_order"), ("bits",))
for label, value in {"number": 5, "null": None, "lost": put}.items():
    case(f"sha-{label}", "sha256 must be a string", put(value, "sha256"), ("bits",))
for label, value in {"other": "0" * 64, "empty": "", "path": "../mask_config.json"}.items():
    case(f"sha-{label}", "must have the sha256", put(value, "sha256"), ("bits", "series"))
for label, value in {"empty": {}, "list": [], "names": ["w"], "null": None, "text": "w", "lost": put}.items():
    case(f"tensors-{label}", "tensors must name at least one", put(value, "tensors"), ("bits", "series"))
for label, value in {"number": 3, "null": None, "list": [8], "empty": {}}.items():
    case(f"spec-{label}", "must be a list of sizes", put(value, "tensors", "w"), ("bits", "signed", "series"))

SHAPES = {
    "negative": ([-8], "list of sizes"), "float": ([8.0], "list of sizes"), "bool": ([True], "list of sizes"),
    "text": ("8", "list of sizes"), "null": (None, "list of sizes"), "nested": ([[8]], "list of sizes"),
    "2**63": ([2**63], "list of sizes"), "10**30": ([10**30], "list of sizes"),
    "65-axes": ([1] * 65, "at most 64 sizes"), "2**62-twice": ([2**62, 2**62], "fewer than 2.*63 weights"),
    "hidden": ([2**62, 2**62, 0], "fewer than 2.*63 weights"),
    "2**40": ([2**40], "must be uint8|a constant level"), "2**62": ([2**62], "must be uint8|a constant level"),
    "2**31-twice": ([2**31, 2**31], "must be uint8|a constant level"),
    "one-byte-more": ([WEIGHTS + 8], "must be uint8|zstd frame of|must keep some|a constant level"),
    "empty": ([0], "must be a count within"), "lost": (put, "list of sizes"),
}  # fmt: skip
for label, (value, message) in SHAPES.items():
    case(f"shape-{label}", message, put(value, "spec", "shape"))
many = [2**62] * 30_000
case("shape-of-30-000-axes", "at most 64 sizes", put(many, "spec", "shape"), ("bits",))

for label, value in {"-1": -1, "float": 8.0, "bool": True, "text": "8", "null": None, "many": WEIGHTS + 1}.items():
    case(f"kept-{label}", "kept of 'w' must be a count within", put(value, "spec", "kept"), ("bits", "signed"))
    case(f"kept-{label}", "kept of 'w' must be a count within", put(value, "spec", "kept", 1), ("series",))
case("kept-wrong", "'w' must keep 1 weights; received", put(1, "spec", "kept"), ("bits", "zstd", "signed"))
case("kept-lost", "kept of 'w' must be", put(put, "spec", "kept"))
for label, value in {"unknown": "lzma", "null": None, "number": 3, "list": ["bits"], "constant": "constant"}.items():
    case(f"encoding-{label}", "encoding of 'w' must be", put(value, "spec", "encoding"), ("bits", "zstd", "signed"))
case("encoding-forgotten", "must be uint8 .257. for 2051 bits as bits", put(put, "spec", "encoding"), ("zstd",))
case("encoding-invented", "bits as zstd; received U8 .257.", put("zstd", "spec", "encoding"), ("bits",))


def rename(name, both):
    def change(files):
        files.config["tensors"] = {name if old == "w" else old: spec for old, spec in files.config["tensors"].items()}
        if both:
            files.tensors = {key.replace("w.", name + "."): tensor for key, tensor in files.tensors.items()}

    return change


for name in ("../w", "/etc/passwd", "", "w.mask", "W", "\ud800", "os.system"):
    case(f"name-{name!r}", "must hold exactly|signs must name", rename(name, False), ("bits", "signed", "series"))


# --- the tensors -----------------------------------------------------------------------------------------------------
def tensor(function, key=None):
    def change(files):
        name = key or files.key
        files.tensors[name] = function(files.tensors[name])

    return change


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


# --- signs -----------------------------------------------------------------------------------------------------------
for label, value in {"null": None, "list": [], "text": "w", "empty": {}, "lost": put}.items():
    case(f"signs-{label}", "signs must name every parameter", put(value, "signs"), ("signed",))
case("signs-partial", "signs must name every parameter", put(put, "signs", "w"), ("signed",))
case("signs-more", "must hold exactly", put({"shape": [2], "negative": 0, "zeros": 0}, "signs", "x"), ("signed",))
for label, (value, message) in SHAPES.items():
    message = "must have one shape" if "uint8" in message or label in ("one-byte-more",) else message
    case(f"sign-shape-{label}", message, put(value, "signs", "w", "shape"), ("signed",))
for label, value in {"2**40": 2**40, "2**62": 2**62}.items():
    case(f"bias-shape-{label}", "must be uint8", put([value], "signs", "bias", "shape"), ("signed",))
for key in ("negative", "zeros"):
    for label, value in {"-1": -1, "float": 1.0, "bool": True, "null": None, "many": 4, "lost": put}.items():
        case(f"{key}-{label}", f"{key} of 'bias' must be a count", put(value, "signs", "bias", key), ("signed",))
case("negative-wrong", "must have 2 negative", put(2, "signs", "bias", "negative"), ("signed",))
case("zeros-wrong", "must have 1 negative and 2 zero", put(2, "signs", "bias", "zeros"), ("signed",))
case("zeros-denied", "must hold exactly", put(0, "signs", "bias", "zeros"), ("signed",))
case("both", "no weight both", tensor(lambda t: t * 0 + 2, "bias.zero"), ("signed",))
for label, value in {
    "nan": float("nan"), "inf": float("inf"), "-1": -1.0, "text": "1", "bool": True, "null": None, "huge": 10**400,
}.items():  # fmt: skip
    case(f"median-{label}", "median of 'w' must be a magnitude", put(value, "signs", "w", "median"), ("signed",))


# --- series ----------------------------------------------------------------------------------------------------------
for label, value in {"0": 0, "-1": -1, "float": 4.0, "bool": True, "text": "4", "null": None, "lost": put}.items():
    case(f"levels-{label}", "levels must be a positive integer", put(value, "levels"), ("series",))
for value in (3, 5, 10**9, 2**70):
    case(f"levels-{value}", f"must be a list of {value}, one a level", put(value, "levels"), ("series",))
for key in ("kept", "encoding"):
    for label, value in {"text": "abcd", "null": None, "short": [], "number": 4, "lost": put}.items():
        case(f"series-{key}-{label}", f"{key} of 'w' must be a list of 4", put(value, "spec", key), ("series",))
case("series-grows", "kept of 'w' must be a count within 0 to", put(WEIGHTS, "spec", "kept", 2), ("series",))
case("series-kept-wrong", "'w at level 3' must keep 1 weights", put(1, "spec", "kept", 3), ("series",))
case("series-kept-wrong-inside", "must be uint8|zstd frame|must keep", put(1000, "spec", "kept", 2), ("series",))
case("series-level-0-partial", "a constant level of 'w' must keep", put(2050, "spec", "kept", 0), ("series",))
for label, value in {"unknown": "lzma", "null": None, "list": [], "number": 0}.items():
    case(f"series-encodes-{label}", "encoding of 'w' must be", put(value, "spec", "encoding", 2), ("series",))
case("series-constant", "a constant level of 'w' must keep", put("constant", "spec", "encoding", 2), ("series",))
case("series-not-constant", "must hold exactly", put("bits", "spec", "encoding", 0), ("series",))


def swap_levels(files):
    one, two = files.tensors["w.level-01"], files.tensors["w.level-03"]
    files.tensors["w.level-01"], files.tensors["w.level-03"] = two, one


def all_constant(weights, tensors):
    def change(files):
        files.config["tensors"] = {"w": {"shape": [weights], "kept": [weights] * 4, "encoding": ["constant"] * 4}}
        files.tensors = {}
        if tensors:  # a byte that bears out eight weights, of which one goes
            files.spec["kept"][1:], files.spec["encoding"][1] = [7, 7, 7], "bits"
            files.spec["kept"][0] = weights
            files.tensors = {"w.level-01": torch.tensor([127], dtype=torch.uint8)}

    return change


case("series-swapped", "must be uint8|zstd frame", swap_levels, ("series",))
for label, weights in {"2**40": 2**40, "2**62": 2**62, "8": 8}.items():
    case(f"series-of-nothing-{label}", "at least a byte for", all_constant(weights, False), ("series",))
for label, weights in {"2**40": 2**40, "2**62": 2**62, "521": 64 * 8 + 9}.items():
    case(f"series-of-a-byte-{label}", "at least a byte for", all_constant(weights, True), ("series",))


def nothing_left(files):
    """A huge constant level of which nothing is left, so that no later level needs bytes."""
    files.config["tensors"]["w"] = {"shape": [2**40], "kept": [0] * 4, "encoding": ["constant"] * 4}
    files.tensors = {key: value for key, value in files.tensors.items() if not key.startswith("w.")}


case("series-nothing-left", "at least a byte for", nothing_left, ("series",))


# --- the tests -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", autouse=True)
def memory_of_all_cases():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * 1024, f"a case took gigabytes that no Python allocator knows of: {grown} KiB more"


def test_there_are_many_cases():
    assert len(CASES) >= 200 and len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("kind", "change", "message"), CASES)
def test_a_changed_file_is_refused(good, kind, change, message, tmp_path, monkeypatch):
    files = Files(kind, *good[kind])
    change(files)
    files.write(tmp_path / "m")
    size = sum(file.stat().st_size for file in (tmp_path / "m").iterdir())
    refuse_pickles(monkeypatch)
    modules = set(sys.modules)
    for reader in READERS.get(kind, [Mask]):
        tracemalloc.start()
        start = time.process_time()
        try:
            with pytest.raises(MaskFileError, match=message) as raised:
                reader.from_pretrained(tmp_path / "m")
            seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert seconds < 1
        assert peak < 2**20 + 70 * size
        assert type(raised.value) is MaskFileError
        assert str(tmp_path) in str(raised.value) and "must" in str(raised.value) and "received" in str(raised.value)
        assert len(str(raised.value)) < 800
    assert set(sys.modules) == modules
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def refuse_pickles(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a mask must not be unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)


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
