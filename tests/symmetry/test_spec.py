import json

import numpy as np
import pytest
import torch
from hand_made import NETWORKS, network, spec_of
from sealed_files import sealed
from torch import nn

from hf_lottery.symmetry.errors import SpecMismatchError, SymmetryError
from hf_lottery.symmetry.errors import SpecMismatchError as SameError
from hf_lottery.symmetry.groups import Axis, Block, Group
from hf_lottery.symmetry.spec import PermutationSpec


def axis(*positions: int, leaves: tuple[str, ...] = ("g",)) -> Axis:
    return Axis(leaves, np.array(positions, dtype=np.int64))


def test_groups_and_shapes():
    _, spec, _ = network("mlp")
    assert list(spec.groups) == ["in", "h1", "h2", "out"] and list(spec.free) == ["h1", "h2"]
    assert spec.shapes["2.weight"] == (12, 16)
    assert spec.members["h1"] == [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]
    assert SameError is SpecMismatchError and issubclass(SpecMismatchError, SymmetryError)
    assert issubclass(SymmetryError, ValueError)


@pytest.mark.parametrize(
    ("groups", "blocks", "message"),
    [
        ([Group("g", 2), Group("g", 2)], [], "group names must be unique; received 2 groups of 1"),
        ([Group("g", 0)], [], "the size of group 'g' must be positive; received 0"),
        ([Group("g", 2, ("h",))], [], "a parent of group 'g' must be a group; received 'h'"),
        (
            [Group("a", 2), Group("b", 2, ("a",)), Group("g", 2, ("b",))],
            [],
            r"the parents of group 'g' must be closed under ancestors.*received \('b',\) although 'b' has \('a',\)",
        ),
        ([Group("g", 2)], [Block((axis(0, 1, leaves=("h",)),))], "an axis of 't' must consist of groups; received 'h'"),
        ([Group("g", 2)], [Block((axis(0, 1, 2),))], r"must be int64 of shape \[2\]; received int64 \[3\]"),
        ([Group("g", 2)], [Block((axis(0, 0),))], "must be 0 or more, each once"),
        ([Group("g", 2)], [Block((axis(-1, 0),))], "must be 0 or more, each once"),
        ([Group("g", 2)], [Block((axis(0, 2),))], r"cover its shape \[3\]; received 2 elements"),
        ([Group("g", 2)], [Block((axis(0, 1),)), Block((axis(1, 2),))], "received 4 elements with overlap"),
        ([Group("g", 2)], [Block((axis(0, 1),)), Block((axis(1, 3),))], "received 4 elements with overlap"),
        (
            [Group("g", 2)],
            [Block((axis(0, 1),)), Block((axis(0, 1),) * 2)],
            "one axis per tensor dimension; received 2",
        ),
        (
            [Group("h", 2), Group("g", 2, ("h",))],
            [Block((axis(0, 1),))],
            "group 'g' must lie with its parent 'h'.*received 0 occurrences",
        ),
        (
            [Group("h", 2), Group("g", 2, ("h",))],
            [Block((axis(0, 1), axis(0, 1, leaves=("h",)), axis(0, 1, leaves=("h",))))],
            "group 'g' must lie with its parent 'h'.*received 2 occurrences",
        ),
    ],
)
def test_contradictions_are_refused(groups, blocks, message):
    with pytest.raises(SymmetryError, match=message):
        PermutationSpec(groups, {"t": blocks} if blocks else {})


@pytest.mark.parametrize("name", NETWORKS)
def test_random_moves_everything_that_is_free(name):
    _, spec, _ = network(name)
    p = spec.random(0)
    for group in spec.groups.values():
        fixed = p.entry(group.name) == np.arange(group.size)
        assert not fixed.any() if group.frozen is None and group.size > 1 else fixed.all()
    assert p == spec.random(0) != spec.random(1)
    assert spec.identity().is_identity


def test_random_of_some_groups():
    _, spec, _ = network("gqa")
    assert set(spec.random(0, include="^qd$|stream").entries) == {"qd", "stream"}
    assert set(spec.random(0, include=["vd"]).entries) == {"vd"}


def test_selection():
    _, spec, _ = network("mlp")
    assert spec.select("^h") == spec.select(["h2", "h1"]) == ["h1", "h2"]
    assert spec.select(None) == ["in", "h1", "h2", "out"]
    assert spec.select("h|out", exclude=["h2"]) == ["h1", "out"]
    assert spec.select([]) == []


def test_a_full_name_selects_that_group_alone():
    """Also a name that is no regular expression, or that another name contains."""
    spec = spec_of({"a.b[0]": 3, "a.b[0]#2": 3, "(": 2}, {"t": ("a.b[0]", "a.b[0]#2", "(")})
    assert spec.select("a.b[0]") == ["a.b[0]"] and spec.select(["(", "a.b[0]#2"]) == ["a.b[0]#2", "("]
    assert set(spec.random(0, include="a.b[0]").entries) == {"a.b[0]"}
    assert list(spec.freeze("(", "test").free) == ["a.b[0]", "a.b[0]#2"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda spec: spec.select("nothing"), "include must match the name of a group; received 'nothing'"),
        (
            lambda spec: spec.select(["h1", "h11"]),
            r"received 'h11', which matches none. Near names: .*list\(spec.groups\)",
        ),
        (lambda spec: spec.select(None, exclude="nothing"), "exclude must match the name of a group"),
        (lambda spec: spec.freeze("nothing", "why"), "include must match the name of a group"),
        (lambda spec: spec.random(0, include="["), r"include must be a valid regular expression; received '\['"),
        (lambda spec: spec.select(""), "include must be a regular expression; received an empty one"),
        (lambda spec: spec.random(0, include="in"), "group 'in' must keep its order, it is frozen"),
    ],
)
def test_selection_is_checked(call, message):
    with pytest.raises(SymmetryError, match=message):
        call(network("mlp")[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_spec_fits_its_model(name):
    model, spec, _ = network(name)
    spec.check_fits(model)
    spec.check_fits(model.state_dict())
    spec.check_fits({"part": torch.zeros(())})


def test_a_spec_says_why_it_does_not_fit():
    model, spec, _ = network("mlp")
    with pytest.raises(SpecMismatchError, match=r"tensor '0.weight' must have the spec's shape \[16, 6\].*\[2, 2\]"):
        spec.check_fits({"0.weight": torch.zeros(2, 2)})
    with pytest.raises(SpecMismatchError, match="tensor 'other' must be in the spec; received no such entry"):
        spec.check_fits({"other": torch.zeros(2)})
    with pytest.raises(SpecMismatchError, match=r"the model must have the tensor '4.weight'; received none"):
        spec.check_fits(model[:4])
    with pytest.raises(SpecMismatchError, match="tensor 'nothing' must be in the spec"):
        spec.explain("nothing")


def test_coverage():
    _, spec, _ = network("resnet")
    kernels = {"stem.weight": 216, "conv1.weight": 720, "depthwise.weight": 90, "conv2.weight": 720, "head.weight": 160}
    assert spec.coverage() == (1.0, (720 + 90 + 720) / sum(kernels.values()))
    assert spec.coverage(names=["conv1.weight"]) == (1.0, 1.0)
    assert spec.freeze("mid", "test").coverage(names=["depthwise.weight"]) == (0.0, 0.0)
    assert spec.coverage(names=[]) == (0.0, 0.0) and spec.held_by(names=[]) == {}
    assert spec.held_by(names=["conv1.weight"]) == {}
    held = {"input or output": (216 + 160) / sum(kernels.values())}
    assert spec.held_by() == pytest.approx(held)
    assert spec.freeze("mid", "test").held_by(names=["conv1.weight", "depthwise.weight"]) == {"test": 1.0}
    assert spec.freeze("stream", "test").held_by(names=["head.weight"]) == {"input or output; test": 1.0}


def test_coverage_counts_every_axis_of_units():
    """The third axis of stacked experts is one; an axis that is cut into single indices does not move."""
    _, spec, _ = network("experts")
    assert spec.coverage(names=["up"]) == (1.0, 1.0)
    assert spec.freeze("stream", "test").coverage(names=["up"]) == (1.0, 0.0)
    cut = spec_of({"h": 4}, {"w": [("", "h"), ("", "h")]})
    assert cut.coverage() == (1.0, 0.0) and cut.held_by() == {"one index": 1.0}


def test_freeze_keeps_the_first_reason():
    _, spec, _ = network("mlp")
    frozen = spec.freeze("h1|in", "because")
    assert list(frozen.free) == ["h2"] and list(spec.free) == ["h1", "h2"]
    assert frozen.groups["h1"].frozen == "because" and frozen.groups["in"].frozen == "input or output"
    assert frozen.fingerprint == spec.fingerprint and frozen != spec


def test_explain_and_table():
    _, spec, _ = network("gqa")
    text = spec.explain("qkv.weight")
    assert "qkv.weight [51, 12]" in text
    assert "block 2 axis 0 (15): kv (3; free) x vd (5 per kv; free)" in text
    assert "vocab (12; frozen: input or output)" in spec.explain("embed.weight")
    lines = repr(spec).splitlines()
    assert lines[0] == "PermutationSpec(8 tensors, 5 of 6 groups free)"
    assert lines[1].split() == ["group", "size", "parents", "members", "frozen"]
    assert ["qd", "4", "kv", "2"] in [line.split() for line in lines]
    assert lines[-1].split() == ["vocab", "12", "2", "input", "or", "output"]


def test_a_long_table_is_cut_and_html_is_escaped():
    spec = spec_of({"<b>": (2, (), "why")} | {f"g{i}": 2 for i in range(30)}, {})
    lines = repr(spec).splitlines()
    assert lines[0] == "PermutationSpec(0 tensors, 30 of 31 groups free)"
    assert len(lines) == 23 and lines[2].split()[0] == "g0" and lines[-1] == "... and 11 more"
    html = spec.freeze("^g", "also")._repr_html_()
    assert "&lt;b&gt;" in html and "<b>" not in html and "and 11 more" in html and "0 of 31 groups free" in html


@pytest.mark.parametrize("name", NETWORKS)
def test_load_save(name, tmp_path):
    _, spec, _ = network(name)
    spec.save(tmp_path / "spec.json")
    again = PermutationSpec.load(tmp_path / "spec.json")
    assert again == spec and again.fingerprint == spec.fingerprint and again.shapes == spec.shapes
    assert type(again) is type(spec.freeze(".*", "test")) is PermutationSpec


def test_the_file_stays_small_and_keeps_odd_positions(tmp_path):
    spec = spec_of({"big": 50_000, "odd": 4}, {"big": ("big",)})
    spec.save(tmp_path / "big.json")
    assert (tmp_path / "big.json").stat().st_size < 1000
    odd = PermutationSpec([Group("odd", 4)], {"t": [Block((axis(0, 3, 1, 2, leaves=("odd",)),))]})
    odd.save(tmp_path / "odd.json")
    assert PermutationSpec.load(tmp_path / "odd.json") == odd != spec


def one_group(**fields):
    return {"groups": [{"name": "g", "size": 4, "parents": [], "frozen": None, **fields}], "tensors": {}}


def one_axis(size=4, **fields):
    return {**one_group(size=size), "tensors": {"t": [[{"leaves": ["g"], **fields}]]}}


BAD_SPECS = [
    ({"format_version": 3}, "format_version must be at most 2; received 3"),
    ({"groups": {}}, "groups must be a list and tensors an object; received dict and dict"),
    ({"groups": [{}]}, "a group must have a name, a positive size, parents and frozen; received {}"),
    *[(one_group(**wrong), "a group must have a name") for wrong in (
        {"name": 1}, {"size": 0}, {"size": 4.0}, {"size": True}, {"size": 2**40}, {"parents": "g"}, {"parents": [1]},
        {"parents": ["g"] * 1000}, {"frozen": 1},
    )],
    (one_group(parents=["other" * 100]), "a parent of group 'g' must be a group"),
    ({"tensors": {"t": 1}}, "'t' must be a list of blocks, lists of axes; received 1"),
    ({"tensors": {"t": [1]}}, "must be a list of blocks"),
    ({"tensors": {"t": [[{}]]}}, "the leaves of 't' must be names of groups"),
    (one_axis(leaves=["other"]), "the leaves of 't' must be names of groups"),
    *[(one_axis(**wrong), "must have a start and a stride for each leaf, or its positions") for wrong in (
        {}, {"start": 0}, {"start": 0, "strides": []}, {"start": 0.0, "strides": [1]}, {"start": 0, "strides": [True]},
        {"start": 2**63, "strides": [1]}, {"positions": [0]}, {"positions": [0, 1, 2, "3"]}, {"positions": None},
    )],
    (one_axis(start=2**30, strides=[1]), "must be disjoint and cover its shape"),
    (one_axis(positions=[0, 1, 2, 2**30]), "must be disjoint and cover its shape"),
    (one_axis(positions=[0, 1, 2, -1]), "must be 0 or more, each once"),
    (one_axis(size=2**30, start=0, strides=[1]), "must have at most 268,435,456 positions"),
    ({**one_axis(), "tensors": {"t": [[]] * 2000}}, "1,048,576 pairs of blocks; received 0 and 4,000,000"),
]  # fmt: skip


def test_a_bad_file_is_refused(tmp_path):
    path = tmp_path / "spec.json"
    with pytest.raises(FileNotFoundError, match=r"the spec must be in .*spec\.json; received no such file"):
        PermutationSpec.load(path)
    _, spec, _ = network("mlp")
    spec.save(path)
    data = json.loads(path.read_text())
    for changed, message in BAD_SPECS:
        path.write_bytes(sealed({**data, **changed}))
        with pytest.raises(SymmetryError, match=message) as raised:
            PermutationSpec.load(path)
        assert str(path) in str(raised.value) and len(str(raised.value)) < 1000


def test_every_name_of_a_tied_weight_is_checked():
    model, spec, _ = network("attention")
    part = PermutationSpec(spec.groups.values(), {k: v for k, v in spec.tensors.items() if k != "head.weight"})
    with pytest.raises(SpecMismatchError, match=r"'head.weight' must be in the spec"):
        part.check_fits(model)
    assert isinstance(model.head, nn.Linear)
