"""Files that version 0.1 wrote, in both of its formats, are read for ever. tests/samples is never rewritten."""

import json
from pathlib import Path

import pytest
import torch

from hf_lottery import Mask, MaskSeries, Match, Permutation, PermutationSpec, SignedMask, Snapshot

SAMPLES = Path(__file__).parents[1] / "samples"
# Hashes that version 0.1 itself gave. A network of two layers; three masks; the network moved by the permutation.
MASKS = (
    "173b55871ebd4bdccfb3f26bd6622bad712842d9accfa2fd7aa9ad4f872b418f",
    "68b638ab5e26636a2c07816ff1753152fd416746456fc18d8e0e5ed6382a2cb1",
    "61c3ddb7de3e050e4ef3c71321b28783c819a9c53ec1b7a9589e6d68f17183c5",
)
NETWORK = "c0c9d08f42d57bebadc24568f0defda985929d687f558c06164f3ab387df6c41"
MOVED = "859cf168cb8cf7fa07ae8ccda80fb8f36d956dfd0866070e6a1bb60249637623"


@pytest.fixture(params=[1, 2])
def samples(request):
    folder = SAMPLES / f"format-{request.param}"
    versions = {json.loads(path.read_text()).get("format_version") for path in folder.rglob("*.json")}
    assert versions == {request.param}
    return folder


def test_masks(samples):
    assert Mask.from_pretrained(samples / "mask").sha256() == MASKS[-1]
    assert tuple(mask.sha256() for mask in MaskSeries.from_pretrained(samples / "series")) == MASKS
    assert Mask.from_pretrained(samples / "series", level=1).sha256() == MASKS[1]


def test_signs(samples):
    signed = SignedMask.from_pretrained(samples / "signed")
    network = Snapshot.load(samples / "snapshot.safetensors").tensors
    assert signed.mask.sha256() == MASKS[-1]
    assert set(signed) == {"first.weight", "first.bias", "last.weight", "last.bias"}
    for name, signs in signed.items():
        assert torch.equal(signs, network[name].sign().to(torch.int8) * signed.mask.get(name, torch.tensor(True)))


def test_weights(samples):
    snapshot = Snapshot.load(samples / "snapshot.safetensors")
    assert (snapshot.sha256(), snapshot.step) == (NETWORK, 3)


def test_permutation(samples):
    spec = PermutationSpec.load(samples / "permutation" / "permutation_spec.json")
    permutation = Permutation.from_pretrained(samples / "permutation", spec)
    snapshot = Snapshot.load(samples / "snapshot.safetensors")
    assert Snapshot(snapshot.step, permutation(snapshot.tensors)).sha256() == MOVED


def test_match():  # the first format had none
    folder = SAMPLES / "format-2" / "match"
    match = Match.from_pretrained(folder, PermutationSpec.load(folder / "permutation_spec.json"))
    snapshot = Snapshot.load(SAMPLES / "format-2" / "snapshot.safetensors")
    assert Snapshot(snapshot.step, match.permutation(snapshot.tensors)).sha256() == MOVED
    assert match.report.converged and match.report.groups["first.weight[0]"].size == 9
