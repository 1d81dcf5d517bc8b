import copy
import json

import numpy as np
import pytest
import torch
from hand_made import NETWORKS, network, spec_of
from sealed_files import sealed
from torch import nn

from hf_lottery import Mask
from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.errors import SpecMismatchError, SymmetryError
from hf_lottery.symmetry.permutation import Permutation, permute_
from hf_lottery.symmetry.spec import PermutationSpec


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_direction_is_pinned():
    spec = spec_of({"units": 3}, {"bias": ("units",)})
    p = Permutation(spec, {"units": [2, 0, 1]})
    assert p({"bias": torch.tensor([10, 20, 30])})["bias"].tolist() == [30, 10, 20]


def test_an_inner_permutation_is_indexed_by_its_destination():
    spec = spec_of({"h": 2, "d": (3, ("h",))}, {"t": ("h d",)})
    p = Permutation(spec, {"h": [1, 0], "d": [[0, 1, 2], [1, 2, 0]]})
    new = p({"t": torch.tensor([1, 2, 3, 4, 5, 6])})["t"]
    assert new.tolist() == [4, 5, 6, 2, 3, 1]


def test_a_parent_on_the_same_axis_comes_first():
    """A form between heads, ``[h d, h d]``: on each axis the inner order is that of the axis's own head."""
    spec = spec_of({"h": 4, "d": (3, ("h",))}, {"form": ("h d", "h d"), "x": ("h d",)})
    state = {"form": torch.randn(12, 12), "x": torch.randn(12)}
    p = spec.random(0)
    moved = p(state)
    before, after = (s["x"] @ s["form"] @ s["x"] for s in (state, moved))
    torch.testing.assert_close(after, before)
    assert same(p.inverse()(moved), state)


def test_composition_applies_the_right_one_first():
    spec = spec_of({"units": 3}, {"bias": ("units",)})
    p, q = Permutation(spec, {"units": [2, 0, 1]}), Permutation(spec, {"units": [1, 0, 2]})
    x = {"bias": torch.tensor([10, 20, 30])}
    assert (p @ q)(x)["bias"].tolist() == p(q(x))["bias"].tolist() == [30, 20, 10]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_network_computes_the_same_function(name):
    model, spec, x = network(name)
    with torch.no_grad():
        before, weights = model(x), copy.deepcopy(model.state_dict())
        permute_(model, spec.random(0))
        assert (model(x) - before).abs().max() <= 1e-10 * before.abs().max()
        assert not any(
            torch.equal(model.state_dict()[key], w) for key, w in weights.items() if w.ndim and _moves(spec, key)
        )


def _moves(spec, name):
    return any(leaf in spec.free for block in spec.tensors[name] for axis in block.axes for leaf in axis.leaves)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_group_moved_in_one_tensor_alone_changes_the_function(name):
    model, spec, x = network(name)
    moved = spec.random(0)(model.state_dict())
    key = next(key for key in spec.tensors if _moves(spec, key) and model.state_dict()[key].ndim > 1)
    with torch.no_grad():
        before = model(x)
        dict(model.named_parameters())[key].copy_(moved[key])
        assert (model(x) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_group_algebra_is_bit_exact(name):
    model, spec, _ = network(name)
    p, q, r = (spec.random(seed) for seed in range(3))
    state = model.state_dict()
    assert (p.inverse() @ p).is_identity and (p @ p.inverse()).is_identity
    assert (p @ q) @ r == p @ (q @ r)
    assert (p @ q).inverse() == q.inverse() @ p.inverse()
    assert p @ spec.identity() == p == spec.identity() @ p
    assert p @ q != q @ p and p.inverse().inverse() == p != "p"
    assert same(p.inverse()(p(state)), state)
    assert same((p @ q)(state), p(q(state)))


@pytest.mark.parametrize("name", NETWORKS)
def test_in_place_and_on_a_state_dict_agree(name):
    model, spec, _ = network(name)
    p, state = spec.random(3), copy.deepcopy(model.state_dict())
    moved = p(state)
    permute_(model, p)
    assert same(model.state_dict(), moved) and not same(state, moved)
    permute_(model, p.inverse())
    assert same(model.state_dict(), state)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mask_moves_with_its_weights(name):
    model, spec, _ = network(name)
    mask = Mask({key: w.detach() > 0.2 for key, w in model.named_parameters() if w.ndim > 1})
    p = spec.random(0)
    moved = p(mask)
    mask.apply_(model)
    permute_(model, p)
    assert isinstance(moved, Mask) and list(moved) == list(mask)
    assert moved == Mask({key: w.detach() != 0 for key, w in model.named_parameters() if w.ndim > 1})
    assert moved.layer_sparsities() == mask.layer_sparsities()
    assert moved != mask


def test_two_parameters_in_one_memory_move_once():
    first, second, last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
    second.weight = nn.Parameter(first.weight.data)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = first, second, last

        def forward(self, x):
            return self.last(self.first(x).relu() + self.second(x).tanh())

    model, x = Twice(), torch.randn(5, 4)
    before = model(x)
    for proof in ("full", "fast"):
        spec = discover(model, (x,), proof=proof)
        assert [*spec.free] == ["first.weight[0]"]
        permute_(model, spec.random(0))
        torch.testing.assert_close(model(x), before)


def test_a_tied_weight_moves_once_and_stays_tied():
    model, spec, _ = network("attention")
    before = model.head.weight.detach().clone()
    permute_(model, spec.random(0))
    assert model.head.weight is model.embed.weight and not torch.equal(model.head.weight, before)
    moved = spec.random(0)(model.state_dict())
    assert moved["head.weight"].data_ptr() == moved["embed.weight"].data_ptr()


def test_tensors_that_do_not_move_are_not_touched():
    model, spec, _ = network("mlp")
    versions = {name: p._version for name, p in model.named_parameters()}
    permute_(model, spec.random(0, include=["h2"]))
    assert [name for name, p in model.named_parameters() if p._version != versions[name]] == [
        "2.weight",
        "2.bias",
        "4.weight",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool])
@pytest.mark.parametrize("name", ["gqa", "experts"])
def test_any_precision_moves_exactly(name, dtype):
    model, spec, _ = network(name)
    state = {key: w.to(dtype) for key, w in model.state_dict().items()}
    p = spec.random(0)
    there = p(state)
    back = p.inverse()(there)
    assert all(there[key].dtype == dtype and torch.equal(back[key].double(), w.double()) for key, w in state.items())


def test_layout_gradient_flag_and_mode_survive():
    model, spec, x = network("resnet")
    model.to(memory_format=torch.channels_last).conv1.train()
    permute_(model, spec.random(0))
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last) and model.conv1.weight.requires_grad
    assert model.conv1.training and not model.conv2.training and not model.training
    assert model(x).isfinite().all()


class Cached(nn.Linear):
    """Keeps what it computes from its weights in eval mode, until train() is called."""

    cache = None

    def train(self, mode=True):
        self.cache = None if mode else self.cache
        return super().train(mode)

    def forward(self, x):
        self.cache = self.weight.clone() if self.cache is None else self.cache
        return x @ self.cache.T


def test_caches_of_weights_are_forgotten():
    model, spec = nn.Sequential(Cached(3, 4, bias=False)).eval(), spec_of({"i": 3, "o": 4}, {"0.weight": ("o", "i")})
    x, p = torch.randn(2, 3), spec.random(0, include=["o"])
    before = model(x)
    permute_(model, p)
    assert torch.equal(model(x), before[:, p.entry("o").tolist()])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"other": [0]}, "must name a group of the spec; received 'other'"),
        ({"h": [0, 1, 2]}, r"of group 'h' must be integers of shape \[2\]; received int64 \[3\]"),
        ({"h": [0.0, 1.0]}, r"of group 'h' must be integers of shape \[2\]; received float64 \[2\]"),
        ({"h": [1, 1]}, r"of group 'h' must hold each of 0..1 once; received \[1, 1\]"),
        ({"d": [[0, 1, 2], [0, 2, 3]]}, r"of group 'd' must hold each of 0..2 once; received \[0, 2, 3\]"),
        ({"f": [1, 0]}, "group 'f' must keep its order, it is frozen: because; received a permutation"),
    ],
)
def test_bad_entries_are_refused(entries, message):
    spec = spec_of({"h": 2, "d": (3, ("h",)), "f": (2, (), "because")}, {"t": ("h d", "f")})
    with pytest.raises(SymmetryError, match=message):
        Permutation(spec, entries)


def test_a_permutation_is_immutable_and_prints():
    spec = spec_of({"units": 3, "f": (2, (), "because")}, {"bias": ("units",)})
    mine = np.array([2, 0, 1])
    p = Permutation(spec, {"units": mine, "f": [0, 1]})
    mine[:] = [0, 1, 2]
    assert p.entry("units").tolist() == [2, 0, 1] and list(p.entries) == ["units"]
    with pytest.raises(ValueError, match="read-only"):
        p.entries["units"][0] = 1
    assert repr(p) == "Permutation(1 of 1 free groups move, 3 indices)"
    assert "<td>units</td><td>3</td><td>3</td>" in p._repr_html_() and repr(p) in p._repr_html_()


def test_one_tensor_is_moved_by_its_name():
    spec = spec_of({"units": 3, "f": (2, (), "because")}, {"bias": ("units",), "other": ("f",)})
    p = Permutation(spec, {"units": [2, 0, 1]})
    bias, other = torch.tensor([10, 20, 30]), torch.tensor([1, 2])
    assert p.move("bias", bias).tolist() == [30, 10, 20] and bias.tolist() == [10, 20, 30]
    assert p.move("other", other) is other


def test_other_tensors_are_refused():
    model, spec, _ = network("mlp")
    p = spec.random(0)
    with pytest.raises(SpecMismatchError, match="'fc.weight' must be in the spec"):
        p(Mask({"fc.weight": torch.ones(2, 2, dtype=torch.bool)}))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SpecMismatchError, match="the model must have the tensor '4.weight'"):
        permute_(model[:4], p)
    assert same(model.state_dict(), before)
    with pytest.raises(SpecMismatchError, match="two permutations must be of the same spec to be composed"):
        _ = p @ network("gqa")[1].random(0)
    assert p != network("gqa")[1].random(0)


def test_a_model_that_ties_what_the_spec_moves_apart_is_refused():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    spec = spec_of({"a": 4, "b": 4, "c": 4}, {"0.weight": ("b", "a"), "1.weight": ("c", "b")})
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    with pytest.raises(SpecMismatchError, match=r"must move together; received '0.weight' and '1.weight'"):
        permute_(model, spec.random(0))
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_load_save(name, tmp_path):
    _, spec, _ = network(name)
    p = spec.random(0)
    p.save_pretrained(tmp_path / "p")
    assert Permutation.from_pretrained(tmp_path / "p", spec) == p
    again = PermutationSpec.load(tmp_path / "p" / "permutation_spec.json")
    assert again == spec and Permutation.from_pretrained(tmp_path / "p", again) == p
    spec.identity().save_pretrained(tmp_path / "p")
    assert Permutation.from_pretrained(tmp_path / "p", spec).is_identity


def test_a_file_for_another_spec_is_refused(tmp_path):
    network("mlp")[1].random(0).save_pretrained(tmp_path)
    with pytest.raises(SpecMismatchError, match=r"must be of the given spec, \w{8}; received one of spec \w{8}"):
        Permutation.from_pretrained(tmp_path, network("gqa")[1])


def test_a_damaged_file_is_refused(tmp_path):
    _, spec, _ = network("mlp")
    with pytest.raises(FileNotFoundError, match=r"must hold permutation_config\.json"):
        Permutation.from_pretrained(tmp_path, spec)
    spec.random(0).save_pretrained(tmp_path)
    config_path, data_path = tmp_path / "permutation_config.json", tmp_path / "permutation.safetensors"
    config = json.loads(config_path.read_text())
    for damage, message in [
        ("[", "must be JSON"),
        ("[]", "must hold a JSON object"),
        ({**config, "format_version": 3}, "format_version must be at most 2; received 3"),
        ({**config, "sha256": 1}, "sha256 must be a str; received 1"),
        ({**config, "entries": {}}, "must be int32 and of the shape that permutation_config.json states"),
        ({**config, "entries": {**config["entries"], "x": [2]}}, "must hold the entries that permutation_config"),
        ({**config, "sha256": "0"}, "must have the sha256 that permutation_config.json states"),
    ]:
        config_path.write_bytes(damage.encode() if isinstance(damage, str) else sealed(damage))
        with pytest.raises(SymmetryError, match=message):
            Permutation.from_pretrained(tmp_path, spec)
    config_path.write_bytes(sealed(config))
    data_path.write_bytes(data_path.read_bytes()[:-4])
    with pytest.raises(SymmetryError, match="truncated, damaged or from another save"):
        Permutation.from_pretrained(tmp_path, spec)
