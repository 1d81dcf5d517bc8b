"""A spec says whether it was proven, keeps that in its file, and is compared with the spec of a narrow copy."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, Recurrent, TwoLayers
from hand_made import network
from torch import nn

from hf_lottery.alignment.matching import activation_matching, weight_matching
from hf_lottery.storage.json_files import seal_json
from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.errors import SpecMismatchError, SymmetryError, SymmetryVerificationError
from hf_lottery.symmetry.groups import Group
from hf_lottery.symmetry.spec import PermutationSpec

X = (torch.randn(3, 6),)


def test_a_spec_says_whether_it_is_proven(tmp_path):
    model, path = TwoLayers(), tmp_path / "spec.json"
    spec = discover(model, X, proof="later")
    assert spec.proof == "later" == spec.freeze("a.weight", "why").proof and "not proven yet" in repr(spec)
    assert "not proven yet" in spec._repr_html_() and spec == discover(model, X)
    spec.save(path)
    assert PermutationSpec.load(path).proof == "later"
    spec.verify(model, X)
    assert spec.proof == "full" and "not proven" not in repr(spec)
    spec.save(path)
    assert PermutationSpec.load(path) == spec and PermutationSpec.load(path).proof == "full"


def test_a_verification_that_fails_proves_nothing():
    model = TwoLayers()
    spec = discover(model, X, proof="later")
    wrong = [Group(group.name, group.size) for group in spec.groups.values()]  # inputs and outputs move as well
    wrong = PermutationSpec(wrong, spec.tensors, network=spec.network, proof="later")
    with pytest.raises(SymmetryVerificationError):
        wrong.verify(model, X)
    assert wrong.proof == "later"


def test_files_of_older_versions_say_nothing_of_it(tmp_path):
    path, (_, spec, _) = tmp_path / "spec.json", network("mlp")
    assert spec.proof is None and "proven" not in repr(spec)
    spec.save(path)
    data = json.loads(path.read_text())
    del data["proof"], data["text_sha256"]
    path.write_bytes(seal_json(data, what="a spec"))
    assert PermutationSpec.load(path).proof is None
    for proof in ("soon", 3, ["full"]):
        path.write_bytes(seal_json({**data, "proof": proof}, what="a spec"))
        with pytest.raises(SymmetryError, match="proof must be one of .*'later'.* or null; received"):
            PermutationSpec.load(path)


@pytest.mark.parametrize("name", ["llama", "mixtral", "vit"])
def test_a_narrow_copy_has_the_same_groups(name):
    row = ARCHITECTURES[name]
    narrow = row.build()
    config = type(narrow.config)(**{**narrow.config.to_dict(), "hidden_size": 64, "intermediate_size": 112})
    if name != "vit":
        config.head_dim = 16
    with torch.device("meta"):
        wide = type(narrow)(config)
    spec = discover(wide, row.inputs(0), proof="later")
    spec.check_like(discover(narrow, row.inputs(0)))
    assert spec.proof == "later"  # it is evidence, and no proof


def test_another_structure_is_no_narrow_copy():
    spec = discover(TwoLayers(), X)
    spec.check_like(discover(TwoLayers(4), X))
    for other, message in (
        (discover(TwoLayers(4), X, exclude="a.weight"), "the group 'a.weight.0.' with .*frozen.* instead of .*free"),
        (discover(Recurrent(nn.LSTM), (torch.randn(2, 3, 6),)), "the group 'a.weight.1.' with None instead of"),
    ):
        with pytest.raises(SpecMismatchError, match=message):
            spec.check_like(other)
    moved = {**spec.tensors, "head.bias": spec.tensors["a.bias"]}
    with pytest.raises(SpecMismatchError, match="the tensor 'head.bias' with .*a.weight.* instead of .*head.weight"):
        spec.check_like(PermutationSpec(spec.groups.values(), moved))


def test_matching_by_an_unproven_spec_warns_once():
    one, two = TwoLayers(), TwoLayers()
    spec = discover(one, X, proof="later")
    with pytest.warns(UserWarning, match=r"the spec is not proven yet.*Call spec\.verify") as told:
        weight_matching(spec, source=one, target=two)
        activation_matching(spec, source=one, target=two, batches=[X])
    assert [Path(warning.filename).name for warning in told] == [Path(__file__).name] * 2
    spec.verify(one, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight_matching(spec, source=one, target=two)
