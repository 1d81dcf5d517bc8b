"""The file of a small network: loaded onto a skeleton of the large one, also in another process; damage is refused."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from test_shrink import Two, half, two

from hf_lottery import discover
from hf_lottery.storage.encoding import MaskFileError
from hf_lottery.storage.json_files import seal_json
from hf_lottery.structured import load_shrunk, shrunk
from hf_lottery.symmetry import SpecMismatchError


@pytest.fixture
def saved(tmp_path):
    model, spec = two()
    found = shrunk(model, spec, half(spec))
    found.save(tmp_path / "small")
    return found, tmp_path / "small"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_it_is_loaded_onto_a_skeleton(saved, device):
    found, folder = saved
    with torch.device(device):
        skeleton = Two()
    small, x = load_shrunk(folder, skeleton), torch.randn(4, 6)
    assert torch.equal(small(x), found.model(x))
    assert str(small) == str(found.model) and skeleton.a.out_features == 8


@pytest.mark.slow
def test_it_is_loaded_in_another_process(saved):
    found, folder = saved
    code = (
        "import sys, torch; from test_shrink import Two; from hf_lottery.structured import load_shrunk\n"
        "print(load_shrunk(sys.argv[1], Two())(torch.ones(1, 6)).tolist())"
    )
    path = [part for part in sys.path if "tests" in part or part.endswith("main")]
    run = subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{code}", str(folder)],
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert torch.allclose(torch.tensor(json.loads(run.stdout)), found.model(torch.ones(1, 6)))


@pytest.mark.parametrize("name", ["shrunk.json", "shrunk.safetensors"])
def test_a_file_that_is_missing_or_damaged_is_refused(saved, name):
    _, folder = saved
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(MaskFileError):
        load_shrunk(folder, Two())
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_shrunk(folder, Two())


@pytest.mark.parametrize(
    "key, value, error",
    [
        ("changes", [["a", ["forward"], 3]], SpecMismatchError),  # only what is a size may be set
        ("changes", [["a", ["training"], 3]], SpecMismatchError),
        ("changes", [["a", ["in_features"], "3"]], MaskFileError),
        ("changes", [["x", ["in_features"], 3]], SpecMismatchError),
        ("fields", [[["width"], 3]], SpecMismatchError),  # it has no configuration
        ("fields", [[["width"], "3"]], MaskFileError),
        ("fields", {}, MaskFileError),
        ("shapes", [], MaskFileError),
        ("shapes", {}, SpecMismatchError),
    ],
)
def test_a_file_that_says_something_else_is_refused(saved, key, value, error):
    _, folder = saved
    config = json.loads((folder / "shrunk.json").read_text())
    del config["text_sha256"]
    (folder / "shrunk.json").write_bytes(seal_json({**config, key: value}, what="a test"))
    with pytest.raises(error):
        load_shrunk(folder, Two())


def test_a_network_of_another_architecture_is_refused(saved):
    _, folder = saved
    with pytest.raises(SpecMismatchError, match="must be of the architecture"):
        load_shrunk(folder, torch.nn.Linear(6, 3))


class Config:
    def __init__(self):
        self.width, self.outputs = 16, 3

    def to_dict(self):
        return vars(self)


class Configured(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.inner = torch.nn.ReLU()
        self.inner.config = copy.copy(config)
        self.up, self.head = torch.nn.Linear(6, config.width), torch.nn.Linear(config.width, config.outputs)

    def forward(self, x):
        return self.head(self.inner(self.up(x)))


def test_its_configuration_is_that_of_the_small_network(tmp_path):
    model, large = Configured(Config()), Configured(Config())
    spec = discover(model, (torch.randn(4, 6),))
    found = shrunk(model, spec, half(spec))
    found.save(tmp_path / "small")
    small = load_shrunk(tmp_path / "small", large)
    assert found.config_fits and found.model.config.width == small.config.width == 8
    assert found.model.inner.config.width == small.inner.config.width == 8
    assert large.config.width == model.config.width == 16 and small.config.outputs == 3
