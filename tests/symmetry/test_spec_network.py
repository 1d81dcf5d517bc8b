"""A spec knows the network it was discovered on, beyond names and shapes: everything that takes a model asks."""

import copy
import json
from typing import Any

import pytest
import torch
from hand_made import network
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from hf_lottery import discover, permute_
from hf_lottery.alignment import Match, MatchReport, activation_matching, weight_matching
from hf_lottery.symmetry.errors import SpecMismatchError
from hf_lottery.symmetry.permutation import Permutation
from hf_lottery.symmetry.spec import PermutationSpec
from hf_lottery.symmetry.structure import Structure

X = torch.randn(3, 5, 12)


class Heads(nn.Module):
    """Attention whose number of heads is in no shape; it counts its passes."""

    def __init__(self, heads=2):
        super().__init__()
        self.heads, self.n = heads, 0
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x):
        self.n += 1
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(1, -2).unbind(1)
        return self.out(F.scaled_dot_product_attention(q, k, v).movedim(-2, 1).flatten(2))


class Grouped(nn.Module):
    def __init__(self, groups=2):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv1d(5, 8, 3), nn.GroupNorm(groups, 8), nn.Conv1d(8, 2, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


def vit(heads=4, **changes):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
    config = ViTConfig(num_attention_heads=heads, num_channels=1, **sizes, **changes)
    return ViTForImageClassification(config).eval()


PIXELS = {"pixel_values": torch.randn(2, 1, 8, 8)}
PAIRS = {
    "heads of a plain network": (Heads(), Heads(4), (X,), "heads is 2 in the spec, 4 here"),
    "groups of a norm": (Grouped(), Grouped(4), (X,), r"norm is 'GroupNorm\(2, 8\)' in the spec, 'GroupNorm\(4, 8\)'"),
    "heads": (vit(), vit(2), PIXELS, "num_attention_heads is 4 in the spec, 2 here"),
    "activation": (vit(), vit(hidden_act="relu"), PIXELS, "hidden_act is 'gelu' in the spec, 'relu' here"),
}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    one, other, inputs, message = PAIRS[request.param]
    return discover(one, inputs), one, other, inputs, message


def test_another_network_is_refused_by_all_that_take_a_model(pair):
    spec, one, other, inputs, message = pair
    before = copy.deepcopy(other.state_dict())
    batch = inputs if isinstance(inputs, dict) else inputs[0]
    for call in (
        lambda: spec.check_fits(other),
        lambda: spec.verify(other, inputs),
        lambda: permute_(other, spec.random(0)),
        lambda: weight_matching(spec, source=one, target=other),
        lambda: weight_matching(spec, source=other, target=one),
        lambda: activation_matching(spec, source=one, target=other, batches=[batch]),
    ):
        with pytest.raises(SpecMismatchError, match=f"{message}.* Discover the spec again"):
            call()
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_the_same_network_is_not(pair):
    spec, one, _, inputs, _ = pair
    same = copy.deepcopy(one)
    for module in same.modules():
        if isinstance(module, Heads):
            module.n = 9
    one(**inputs) if isinstance(inputs, dict) else one(*inputs)
    spec.check_fits(one)
    spec.check_fits(same)
    spec.verify(one, inputs)
    permute_(one, spec.random(0))


def test_files_keep_the_network(pair, tmp_path):
    spec, one, other, _, message = pair
    spec.save(tmp_path / "spec.json")
    again = PermutationSpec.load(tmp_path / "spec.json")
    assert again == spec and again.network == json.loads(json.dumps(spec.network)) == spec.freeze(".*", "why").network
    again.check_fits(one)
    with pytest.raises(SpecMismatchError, match=message):
        again.check_fits(other)
    match = Match(spec.random(0), MatchReport({}, (0.0,), converged=True))
    match.save_pretrained(tmp_path)
    assert Permutation.from_pretrained(tmp_path, again) == match.permutation
    # The same groups at the same places, of another network:
    elsewhere = PermutationSpec(spec.groups.values(), spec.tensors, network={**(spec.network or {}), "act": "other"})
    for load in (Permutation.from_pretrained, Match.from_pretrained):
        with pytest.raises(SpecMismatchError, match="act is 'other' in one spec, not set in another"):
            load(tmp_path, elsewhere)
    with pytest.raises(SpecMismatchError, match="act is not set in one spec, 'other' in another"):
        spec.random(0) @ elsewhere.random(1)


def test_without_a_network_names_and_shapes_decide(tmp_path):
    """So it is for specs written by hand, and for files of older versions."""
    spec = discover(Grouped(), (X,))
    loose = PermutationSpec(spec.groups.values(), spec.tensors)
    assert loose != spec and loose.fingerprint == spec.fingerprint and loose.network is None
    loose.check_fits(Grouped(4))
    loose.random(0).save_pretrained(tmp_path)
    assert Permutation.from_pretrained(tmp_path, spec) == spec.random(0)
    older = {name: value for name, value in json.loads((tmp_path / "permutation_spec.json").read_text()).items()}
    for key in ("network", "text_sha256"):
        del older[key]
    (tmp_path / "permutation_spec.json").write_text(json.dumps({**older, "format_version": 1}))
    assert Permutation.from_pretrained(tmp_path, spec) == spec.random(0)
    assert PermutationSpec.load(tmp_path / "permutation_spec.json") == loose
    state = Grouped(4).state_dict()  # a state dict says nothing of its network
    assert spec.random(0)(state).keys() == state.keys()


def test_what_is_no_model_is_refused():
    _, spec, _ = network("mlp")
    permutation, model = spec.random(0), network("mlp")[0]
    state: Any = dict(model.state_dict())
    match: Any = Match(permutation, MatchReport({}, (0.0,), converged=True))
    for call, message in [
        (
            lambda: permutation(model),
            r"must be called with a mask or a state dict; received Sequential. Permute a model",
        ),
        (lambda: permutation(7), "must be compared with a model, a state dict or a mask; received int"),
        (lambda: spec.check_fits("model"), "received str"),
        (lambda: permute_(model, match), r"received Sequential and Match. Of a match, pass\s+match.permutation"),
        (lambda: permute_(state, permutation), "received dict and Permutation"),
    ]:
        with pytest.raises(TypeError, match=message):
            call()
    assert isinstance(spec, Structure)
