import pytest
import torch
from architectures import ARCHITECTURES
from hand_made import network

from hf_lottery import discover, score_weights
from hf_lottery.structured import prune_units, unit_candidates
from hf_lottery.symmetry import SymmetryError

# Architecture -> parts of the names of its candidates, and of the free groups that are none.
EXPECTED = {
    "llama": (["mlp.gate_proj", "self_attn.q_proj.weight[0]"], ["embed_tokens", "q_proj.weight[0]#", "v_proj"]),
    "bert": (["intermediate", "query.weight[0]", "pooler"], ["word_embeddings", "query.weight[0]#", "value"]),
    "t5": (
        ["DenseReluDense", "SelfAttention.q.weight[0]", "EncDecAttention.q.weight[0]"],
        ["shared", "Attention.v", "#"],
    ),
    "vit": (["intermediate|fc1", "attention"], ["embeddings", "#"]),
    "resnet18": (["layer.0.convolution"], ["embedder", "shortcut"]),
    "squeeze-excite": (["squeeze", "a.weight[0]"], ["#"]),
    "lstm": ([], ["rnn"]),
    "vgg": (["a.weight", "b.weight"], []),
    "timm-qkv": (["up", "qkv.weight[0]"], ["embed", "#"]),
}


def spec_of(name):
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    return discover(architecture.build().eval(), architecture.inputs(0), proof="later")


@pytest.mark.parametrize("name", EXPECTED)
def test_streams_and_nested_groups_are_no_candidates(name):
    wanted, unwanted = EXPECTED[name]
    spec = spec_of(name)
    found = unit_candidates(spec)
    for pattern in wanted:
        assert any(part in group for group in found for part in pattern.split("|")), pattern
    for pattern in unwanted:
        assert any(pattern in group for group in spec.free) or pattern == "#"
        assert not any(pattern in group for group in found if "layer.0.convolution" not in group), pattern


@pytest.mark.slow
@pytest.mark.parametrize("name, streams", [("efficientnet", 3), ("regnet", 2), ("resnet50", 3), ("mobilenet_v2", 5)])
def test_gates_and_bottlenecks_do_not_hide_streams(name, streams):
    spec = spec_of(name)
    left = [group for group in spec.free.values() if group.name not in unit_candidates(spec) and not group.parents]
    assert len(left) == streams and all(len(spec.members[group.name]) >= 12 for group in left)
    assert not any("expan" in group.name or "squeeze" in group.name for group in left)


@pytest.mark.slow
def test_the_units_of_experts_are_candidates_and_experts_are_not():
    spec = spec_of("mixtral")
    found = unit_candidates(spec)
    assert [group for group in found if "experts" in group] and not [group for group in found if "mlp.gate." in group]


@pytest.mark.parametrize("name, mixed", [("albert", "word_embeddings"), ("codebook", "codes")])
def test_groups_that_a_norm_or_ranking_mixes_are_no_candidates(name, mixed):
    assert not any(mixed in group for group in unit_candidates(spec_of(name)))


def test_they_are_the_default():
    architecture = ARCHITECTURES["llama"]
    model = architecture.build().eval()
    spec = discover(model, architecture.inputs(0), proof="later")
    mask = prune_units(model, spec, score_weights(model), sparsity=0.5)
    assert list(mask.units) == unit_candidates(spec)
    assert list(prune_units(model, spec, score_weights(model), sparsity=0.5, exclude="mlp").units) == [
        group for group in unit_candidates(spec) if "mlp" not in group
    ]


def test_a_spec_without_reads_has_no_default():
    model, spec, _ = network("mlp")
    with pytest.raises(SymmetryError, match="must know which axes its weights read.*Name the groups with include"):
        prune_units(model, spec, score_weights(model), sparsity=0.5)
