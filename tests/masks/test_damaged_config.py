"""Damaged and hostile configs of mask files: values of other types and sizes, shapes that lie, signs and series."""

import pickle

import pytest
import torch
from damaged_masks import WEIGHTS, Cases, check_refused, put, rename, tensor

CASES = Cases()
case = CASES.add


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
case("text-long", "must be at most 16,777,216 bytes", text(b" " * (2**24 + 1)), ("bits",))


for label, value in {"0": 0, "-1": -1, "text": "1", "float": 1.0, "bool": True, "null": None, "lost": put}.items():
    case(f"version-{label}", "format_version must be a positive integer", put(value, "format_version"), ("bits",))
for value in (3, 10**30):
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


for name in ("../w", "/etc/passwd", "", "w.mask", "W", "\ud800", "os.system"):
    case(f"name-{name!r}", "must hold exactly|signs must name", rename(name, False), ("bits", "signed", "series"))


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


# --- the tests -----------------------------------------------------------------------------------------------------
def test_there_are_many_cases():
    assert len(CASES) >= 200 and len({case.id for case in CASES}) == len(CASES)


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize(("kind", "change", "message"), CASES)
def test_a_changed_file_is_refused(good, kind, change, message, tmp_path, monkeypatch):
    check_refused(good, kind, change, message, tmp_path, monkeypatch)
