"""How far shrinking reaches: half of the units of every free group, in every architecture that discover is tested with.

What is returned is compared with the large network under a mask of these units, which another module makes. ``pytest
-s`` prints what was kept whole, and why.
"""

import copy
import re
import warnings

import pytest
import torch
from architectures import ARCHITECTURES
from rarer_architectures import RARE
from test_shrink import half
from torch import nn
from torch.nn import functional as F

from hf_lottery import discover
from hf_lottery.structured import UnitMask, shrunk
from hf_lottery.symmetry.outputs import chosen_outputs

# Why a group may be kept whole: a norm, softmax or ranking reads all of it; the model's own code holds its size.
REASONS = re.compile("reads all of its units at once|the model does not run with less|must keep equally many")
# Groups that are cut at least; residual streams under norms and experts under a router are not among them.
CUT = {
    "resnet18": 9, "resnet50": 16, "convnext": 5, "mobilenet_v2": 25, "efficientnet": 28, "regnet": 24, "vit": 12,
    "deit": 12, "swin": 16, "bert": 13, "bert-mlm": 12, "roberta": 13, "distilbert": 13, "albert": 5, "electra": 13,
    "modernbert": 6, "gpt2": 12, "gpt_neox": 4, "opt": 8, "bloom": 6, "falcon-gqa": 6, "llama": 6, "llama-tied": 6,
    "mistral": 6, "qwen2": 6, "qwen3": 6, "gemma2": 6, "phi3": 6, "mixtral": 6, "qwen2_moe": 8, "t5": 18,
    "t5-gated": 18, "bart": 22, "densenet": 3, "squeeze-excite": 2, "einsum-attention": 4, "mixer": 3, "clip": 16,
    "siglip": 17, "llava": 15, "gpt_oss": 6, "maxout": 0, "codebook": 0,
}  # fmt: skip
EXPERTS = {"mixtral", "qwen2_moe", "gpt_oss"}
FAST = {"resnet18", "llama", "vgg", "squeeze-excite", "densenet", "timm-qkv", "lstm", "shufflenet"}


def built(name):
    row = ARCHITECTURES.get(name) or RARE[name]
    torch.manual_seed(0)
    model = row.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # initial values of zero and one would hide errors
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    if name in EXPERTS:
        model.set_experts_implementation("eager")  # the usual kernel takes no odd numbers of units
    return model, row


def outputs(model, inputs):
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    with torch.no_grad():
        return chosen_outputs(model(**wide), None)


@pytest.mark.filterwarnings("ignore:operations without a rule")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in [*ARCHITECTURES, *RARE]],
)
def test_half_of_every_group(name):
    model, row = built(name)
    spec = discover(model, row.inputs(0))
    found = shrunk(model, spec, half(spec))
    cut = [entry.name for entry in found.report if entry.reason is None]
    print(f"\n{name}: {len(cut)} of {len(found.report)} groups cut; kept whole:", *found.refused.items(), sep="\n    ")
    assert len(cut) >= CUT.get(name, 1)
    assert all(REASONS.search(why) for why in found.refused.values())
    assert found.error[0] <= 1e-10 and found.error[1] <= 1e-5
    if not cut:
        return
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for tensor, keep in UnitMask(found.units, spec).items():
            masked.get_parameter(tensor).mul_(keep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted, given = (outputs(one.double(), row.inputs(0)) for one in (masked, found.model))
    for field, value in wanted.items():
        if value.is_floating_point():
            assert (value - given[field]).abs().max() <= 1e-9 * value.abs().max(), field


class Attention(nn.Module):
    """Attention of DINO and timm: one weight for queries, keys and values, with its sizes in attributes."""

    def __init__(self):
        super().__init__()
        self.embed, self.head, self.num_heads, self.head_dim, self.attn_dim = (
            nn.Linear(6, 32),
            nn.Linear(32, 5),
            4,
            8,
            32,
        )
        self.scale, self.qkv, self.proj = 8**-0.5, nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head((x + self.proj(mixed.transpose(1, 2).reshape(b, n, self.attn_dim))).mean(1))


class Excite(nn.Module):
    """Inverted bottleneck with squeeze and excitation, as in EfficientNet."""

    def __init__(self):
        super().__init__()
        self.up, self.n1 = nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.n2 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.down, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.silu(self.n2(self.depthwise(F.silu(self.n1(self.up(x))))))
        x = x * self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(self.down(x).mean((2, 3)))


class UNet(nn.Module):
    """A skip that is concatenated with what comes back from below."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.up = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ConvTranspose2d(12, 6, 2, 2),
        )
        self.join, self.out = nn.Conv2d(14, 10, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        skip = self.a(x).relu()
        below = self.up(self.b(F.max_pool2d(skip, 2)).relu())
        return self.out(self.join(torch.cat([skip, below], 1)).relu())


class Parallel(nn.Module):
    """Concatenated features in front of a depthwise and a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)
        self.depthwise, self.grouped = nn.Conv2d(12, 24, 3, groups=12), nn.Conv2d(24, 12, 1)
        self.c, self.head = nn.Conv2d(12, 8, 1, groups=4), nn.Linear(8, 5)

    def forward(self, x):
        x = self.depthwise(torch.cat([self.a(x), self.b(x)], 1).relu())
        return self.head(self.c(self.grouped(x).relu()).relu().mean((2, 3)))


IMAGE, TEXT = (2, 3, 8, 8), (2, 7, 6)


@pytest.mark.parametrize("kind, shape", [(Attention, TEXT), (Excite, IMAGE), (UNet, IMAGE), (Parallel, IMAGE)])
def test_every_group_is_cut(kind, shape):
    torch.manual_seed(0)
    model = kind().eval()
    spec = discover(model, (torch.randn(shape),))
    found = shrunk(model, spec, half(spec))
    assert not found.refused and len(found.report) == len([g for g in spec.free.values() if g.size > 1])
    if kind is Attention:
        assert (found.model.num_heads, found.model.head_dim, found.model.attn_dim) == (2, 4, 8)
    if kind is UNet:
        assert found.model.join.in_channels == 7 and found.model.up.out_channels == 3
    if kind is Parallel:
        assert found.model.depthwise.groups == 6 and found.model.depthwise.in_channels == 6
