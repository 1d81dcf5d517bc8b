"""Damaged and hostile mask files: a good file of each kind, ways to change one place, and what a reader must do then.

The checksums are made to fit, as an attacker would, except where a case is named ``unnoticed``.
"""

import copy
import hashlib
import json
import pickle
import sys
import time
import tracemalloc

import pytest
import torch
from safetensors.torch import load, save
from sealed_files import sealed

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


def good_files(root):
    """Config and bytes of a good file of each kind."""
    masks = make_masks()
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
        text = sealed(self.config) if self.text is None else self.text
        (folder / "mask_config.json").write_bytes(text)


def digest(data):
    return hashlib.sha256(data).hexdigest()


class Cases(list):
    """Cases for ``parametrize``: of each the kind of file, the change, and the message of the check that finds it.

    A change is a function that gets a :class:`Files` to work on.
    """

    def add(self, name, message, change, kinds=KINDS):
        self.extend(pytest.param(kind, change, message, id=f"{kind}-{name}") for kind in kinds)


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


def tensor(function, key=None):
    def change(files):
        name = key or files.key
        files.tensors[name] = function(files.tensors[name])

    return change


def rename(name, both):
    def change(files):
        files.config["tensors"] = {name if old == "w" else old: spec for old, spec in files.config["tensors"].items()}
        if both:
            files.tensors = {key.replace("w.", name + "."): tensor for key, tensor in files.tensors.items()}

    return change


def check_refused(good, kind, change, message, tmp_path, monkeypatch):
    """Change a file; every reader must raise one clear error, soon, in memory bounded by the size of the files."""
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
