"""Which axes of a parameter are summed over with an activation: what units send leaves through these."""

import json

import pytest
import torch
from support.architectures import ARCHITECTURES
from torch import nn

from hf_lottery import PermutationSpec, discover
from hf_lottery.storage.json_files import seal_json
from hf_lottery.symmetry.errors import SymmetryError

CONVOLUTIONS = nn.Sequential(
    nn.Conv2d(3, 6, 3),
    nn.Conv2d(6, 6, 3, groups=6),
    nn.ReLU(),
    nn.Conv2d(6, 8, 3, groups=2),
    nn.ReLU(),
    nn.ConvTranspose2d(8, 6, 3),
    nn.ReLU(),
    nn.ConvTranspose2d(6, 4, 3, groups=2),
    nn.ConvTranspose2d(4, 4, 3, groups=4),
    nn.Conv2d(4, 2, 1),
)


class Own(nn.Module):
    """Weights that a product sees as a slice, transposed, merged, gathered, joined, or computed by weight norm."""

    def __init__(self):
        super().__init__()
        self.fused = nn.Parameter(torch.randn(3, 6, 6))
        self.merged = nn.Parameter(torch.randn(2, 3, 6))
        self.experts = nn.Parameter(torch.randn(4, 5, 6))
        self.left, self.right = (nn.Parameter(torch.randn(2, 5)) for _ in range(2))
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2, bias=False))
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x):
        a, b, c = self.fused.unbind()
        x = (x @ a.t()).relu() * self.scale @ b + x @ c[:, :6]
        x = x @ self.merged.view(6, 6)
        chosen = self.experts[torch.arange(len(x)) % 4]
        x = torch.bmm(chosen, x.unsqueeze(-1)).squeeze(-1).relu()
        return self.out(x @ torch.cat([self.left, self.right]).t())


def test_the_axes_that_layers_sum_over():
    assert discover(CONVOLUTIONS, (torch.randn(2, 3, 12, 12),)).reads == {
        **{f"{i}.weight": (1,) for i in (0, 3, 9)},  # a depthwise convolution is a gain of each channel
        **{f"{i}.weight": (0,) for i in (5, 7)},
    }
    assert discover(Own(), (torch.randn(8, 6),), strict=False).reads == {
        "fused": (1, 2),  # of one slice the rows are read, of the others the columns
        "merged": (0, 1),
        "experts": (2,),
        "left": (1,),
        "right": (1,),
        "out.parametrizations.weight.original1": (1,),
    }
    pair = nn.Bilinear(3, 4, 2)
    assert discover(Twice(pair), (torch.randn(5, 3), torch.randn(5, 4))).reads == {"layer.weight": (1, 2)}
    lstm = nn.LSTM(3, 4, bidirectional=True)
    assert discover(lstm, (torch.randn(5, 2, 3),)).reads == {n: (1,) for n, p in lstm.named_parameters() if p.ndim == 2}


class Queries(nn.Module):
    """Learned inputs: a weight reads them, and is read by nothing."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 4))
        self.keys, self.values, self.out = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)
        self.inner = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        queries = self.queries.expand(len(x), -1, -1) @ self.inner
        weights = (queries @ self.keys(x).transpose(1, 2)).softmax(-1)
        return self.out(weights @ self.values(x))


def test_learned_inputs_are_no_weights():
    spec = discover(Queries(), (torch.randn(2, 7, 5),))
    assert spec.reads == {"inner": (0,), "keys.weight": (1,), "values.weight": (1,), "out.weight": (1,)}
    assert spec.mixed["inner[1]"] == "a product of activations" and "values.weight[0]" not in spec.mixed


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("bert", {"bert.embeddings.word_embeddings.weight[1]": "the operation native_layer_norm"}),
        ("llama", {"model.embed_tokens.weight[1]": "the operation mean"}),
        ("mixtral", {"model.layers.0.mlp.gate.weight[0]": "the operation _softmax"}),
        ("squeeze-excite", {"a.weight[0]#2": "the operation native_group_norm"}),
        ("codebook", {"codes[0]": "the operation argmin", "codes[1]": "the operation _cdist_forward"}),
        ("densenet", {}),
    ],
)
def test_what_mixes_the_units_of_a_group(name, groups):
    row = ARCHITECTURES[name]
    spec = discover(row.build().eval(), row.inputs(0), proof="later")
    mixed = {group: by for group, by in spec.mixed.items() if group in spec.free}
    products = {group for group, by in mixed.items() if by == "a product of activations"}
    assert groups.items() <= mixed.items()
    assert all("query" in group for group in products) and len(products) == 3 * (name == "bert")
    assert len(mixed) - len(products) == 3 if name == "mixtral" else mixed.keys() - products == groups.keys()


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, first, second):
        return self.layer(first, second)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "name", ["bert-mlm", "gpt2", "llama", "mixtral", "mobilenet_v2", "timm-qkv", "einsum-attention"]
)
def test_architectures_read_one_side_of_every_weight(name, device):
    row = ARCHITECTURES[name]
    with torch.device(device):
        model = row.build().eval()
    spec = discover(model, row.inputs(0), proof="later")
    for key, shape in spec.shapes.items():
        looked_up = "position" in key or "token_type" in key or "wpe" in key or key == "model.embed_tokens.weight"
        depthwise = len(shape) == 4 and shape[1] == 1
        if len(shape) < 2 or looked_up or depthwise:
            assert key not in spec.reads
        elif name == "gpt2" and ".h." in key:
            assert spec.reads[key] == (0,)
        elif name == "einsum-attention":
            assert spec.reads[key] == ((0, 1) if key == "out" else (0,) if key in "qkv" else (1,))
        else:
            assert spec.reads[key] == (len(shape) - 1 if "experts" in key else 1,)


def test_reads_are_saved_and_are_no_part_of_a_spec_s_identity(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    spec = discover(model, (torch.randn(5, 4),))
    bare = PermutationSpec(spec.groups.values(), spec.tensors, network=spec.network)
    assert bare.reads is None and bare == spec and bare.fingerprint == spec.fingerprint
    spec.save(tmp_path / "spec.json")
    for other in (PermutationSpec.load(tmp_path / "spec.json"), spec.freeze("0", "no")):
        assert (other.reads, other.mixed) == (spec.reads, spec.mixed)
    bare.save(tmp_path / "bare.json")
    other = PermutationSpec.load(tmp_path / "bare.json")
    assert other.reads is None and other.mixed is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("reads", reads) for reads in ([1], {"0.weight": 1}, {"0.weight": ["1"]}, {"0.weight": [2]}, {"other": [0]})]
    + [("mixed", mixed) for mixed in (["x"], {"0.weight[0]": 1}, {"other": "a norm"})],
)
def test_damaged_reads_are_refused(tmp_path, key, value):
    spec = discover(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.randn(5, 4),))
    spec.save(tmp_path / "spec.json")
    data = {**json.loads((tmp_path / "spec.json").read_text()), key: value}
    del data["text_sha256"]
    (tmp_path / "spec.json").write_bytes(seal_json(data, what="a spec"))
    with pytest.raises(SymmetryError, match=f"{key} must"):
        PermutationSpec.load(tmp_path / "spec.json")
