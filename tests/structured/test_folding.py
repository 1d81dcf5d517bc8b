"""Units that a mask leaves dead: what goes without a change of the outputs, and what must stay."""

import copy
import itertools

import numpy as np
import pytest
import torch
from support.architectures import ARCHITECTURES
from torch import nn
from torch.nn import functional as F

from hf_lottery import Mask, PermutationSpec, discover
from hf_lottery.masks import MaskMismatchError
from hf_lottery.structured import UnitError, dead_units
from hf_lottery.structured.folding import fold_, live_units
from hf_lottery.symmetry import Axis, Block, Group, SpecMismatchError


def layers(*sizes, between=nn.ReLU):
    made = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), between())]
    return nn.Sequential(*made[:-1])


def random_model(build, seed=0):
    torch.manual_seed(seed)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at zero and one, which hides what they do
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand_like(buffer))
    return model.double()


def in_double(inputs):
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def random_mask(model, density):
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    return Mask({name: torch.rand(weight.shape) < density for name, weight in weights.items()})


def masked(model, mask):
    model = copy.deepcopy(model)
    with torch.no_grad():
        mask.apply_(model)
    return model


@torch.no_grad()
def outputs(model, inputs):
    found = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return getattr(found, "logits", found)


def change(one, other, inputs):
    old, new = outputs(one, inputs), outputs(other, inputs)
    return float((old - new).abs().max() / old.abs().max().clamp(min=1e-30))


@torch.no_grad()
def without(model, spec, units, *, noise=0.0):
    """A copy in which everything of the units that go is zero, or noise where they receive."""
    model, tensors = copy.deepcopy(model), None
    tensors = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers()))
    for name, blocks in spec.tensors.items():
        for block in blocks if tensors[name].is_floating_point() else ():
            slots, sizes = block.slots(spec.groups), [axis.positions.size for axis in block.axes]
            cells = torch.meshgrid(*(torch.arange(spec.groups[s.group].size) for s in slots), indexing="ij")
            for k, slot in enumerate(slots):
                if slot.group in units:
                    gone = ~units[slot.group][(*(cells[p] for p in slot.parents), cells[k])].reshape(sizes)
                    value = 0.0 if slot.axis in spec.reads.get(name, ()) else noise * torch.rand(sizes).double()
                    index = [torch.from_numpy(axis.positions.reshape(-1)) for axis in block.axes]
                    index = torch.meshgrid(*index, indexing="ij")
                    tensors[name][index] = torch.where(gone, value, tensors[name][index])
    return model


def check(model, inputs, density, *, spec=None):
    """Choose units, and check that they can go; return spec, units and folds."""
    mask = random_mask(model, density)
    spec = discover(model, inputs) if spec is None else spec
    before = copy.deepcopy(model.state_dict())
    units, folds = live_units(model, spec, mask, inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    folded = masked(model, mask)
    fold_(folded, folds)
    assert change(masked(model, mask), folded, inputs) <= 1e-12
    assert change(folded, without(folded, spec, units, noise=1.0), inputs) <= 1e-12
    for group, kept in units.items():
        assert kept.shape == spec.entry_shape(group) and not kept.all()
        assert len({*kept.reshape(-1, kept.shape[-1]).sum(-1).tolist()} - {0}) == 1
    return spec, units, folds, folded


@pytest.mark.parametrize("between", [nn.ReLU, nn.GELU, nn.Sigmoid])
@pytest.mark.parametrize("density", [0.03, 0.08, 0.2])
def test_of_layers_just_the_dead_units_go(between, density):
    model, inputs = random_model(lambda: layers(10, 40, 40, 30, 5, between=between)), (torch.randn(6, 10).double(),)
    torch.manual_seed(int(1000 * density))
    spec, units, folds, folded = check(model, inputs, density)
    assert units and (folds.added or density > 0.1)
    dead = dead_units(folded, spec)
    for group in spec.free:
        kept = units.get(group, torch.ones(spec.entry_shape(group), dtype=torch.bool))
        assert kept.sum() == max(int((~dead[group]).sum()), 1)  # in the order of the units, a dead one only if all are
        # Brute force: each unit that stays counts. (A ReLU may keep one at zero on these inputs.)
        for unit in kept.nonzero().flatten() if kept.sum() > 1 and between is not nn.ReLU else ():
            alone = torch.arange(len(kept)) != unit
            assert change(folded, without(folded, spec, {group: alone}), inputs) > 1e-9


@pytest.mark.parametrize(
    ("name", "density"),
    [
        ("bert", 0.04),
        ("gpt2", 0.04),
        ("llama", 0.05),
        ("mobilenet_v2", 0.1),
        ("squeeze-excite", 0.1),
        ("densenet", 0.05),
        ("timm-qkv", 0.05),
        ("torch-encoder", 0.05),
        ("t5-gated", 0.05),
        ("lstm", 0.05),
    ],
)
def test_architectures_compute_the_same_without_them(name, density):
    row = ARCHITECTURES[name]
    model, inputs = random_model(row.build), in_double(row.inputs(0))
    _, units, _, _ = check(model, inputs, density, spec=discover(model, inputs, proof="later"))
    assert units


def test_a_mask_of_nothing_and_a_mask_of_everything():
    model, inputs = random_model(lambda: layers(4, 5, 3)), (torch.randn(6, 4).double(),)
    spec, units, folds, _ = check(model, inputs, 2.0)
    assert not units and not folds.added and not folds.removed
    _, units, _, folded = check(model, inputs, 0.0)
    assert units["0.weight[0]"].sum() == 1
    assert live_units(folded, spec, None, inputs)[0]["0.weight[0]"].sum() == 1


class Residual(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, **options)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x)).relu()).mean((2, 3)))


@pytest.mark.parametrize(("options", "kept"), [
    ({"kernel_size": 3}, {2, 3, 4, 5}),
    ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, {2, 3, 4, 5}),
    ({"kernel_size": 3, "padding": 1}, {1, 2, 3, 4, 5}),
    ({"kernel_size": 1, "bias": False}, {1, 2, 3, 4, 5}),
])  # fmt: skip
def test_a_constant_goes_into_the_bias_where_it_reaches(options, kept):
    """A channel that receives nothing is a constant: zero by the ReLU, or a number that padding and no bias stop."""
    model, inputs = random_model(lambda: Residual(**options)), (torch.randn(4, 3, 8, 8).double(),)
    with torch.no_grad():
        model.first.weight[:2] = 0
        model.norm.running_mean.zero_()
        model.norm.bias[:2] = torch.tensor([-2.0, 2.0])
    spec = discover(model, inputs)
    units, folds = live_units(model, spec, None, inputs)
    assert {*units["first.weight[0]"].nonzero().flatten().tolist()} == kept
    assert [*folds.added] == ([] if 1 in kept else ["second.bias"])
    folded = copy.deepcopy(model)
    fold_(folded, folds)
    assert change(model, folded, inputs) <= 1e-12
    assert change(folded, without(folded, spec, units), inputs) <= 1e-12
    with torch.no_grad():
        assert dead_units(model, spec)["first.weight[0]"].tolist() == [True, True, False, False, False, False]


class Joined(nn.Module):
    """Two layers make the same units, which are added or multiplied."""

    def __init__(self, join, **options):
        super().__init__()
        self.join = join
        self.left, self.right, self.out = nn.Linear(4, 5, **options), nn.Linear(4, 5, **options), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.join(self.left(x), self.right(x)))


def test_a_unit_that_only_seems_constant_stays():
    """A negative bias keeps a ReLU at zero on these inputs; on others it need not."""
    model, inputs = Joined(lambda a, b: (a + b).relu()), (torch.rand(6, 4),)
    with torch.no_grad():
        model.left.weight[:2] = 0
        model.right.weight[1] = 0
        model.left.bias[:2] = -50.0
    units, _ = live_units(model, discover(model, inputs), None, inputs)
    assert units["left.weight[0]"].tolist() == [True, False, True, True, True]


def test_half_of_a_gated_unit_is_enough():
    model, inputs = Joined(lambda a, b: F.silu(a) * b, bias=False), (torch.rand(6, 4),)
    with torch.no_grad():
        model.left.weight[0] = 0
        model.right.weight[1] = 0
    spec = discover(model, inputs)
    units, folds = live_units(model, spec, None, inputs)
    assert units["left.weight[0]"].tolist() == [False, False, True, True, True] and not folds.added
    assert not dead_units(model, spec)["left.weight[0]"].any()  # which takes the numbers alone, and runs nothing


class Met(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 5), nn.LayerNorm(5) if norm else None, nn.Linear(5, 1)

    def forward(self, x):
        x = self.a(x)
        return self.b(self.norm(x) if self.norm else x.relu()) + (x if self.norm else x @ x.mT).sum(-1, keepdim=True)


def test_units_that_others_depend_on_otherwise_are_alive():
    for norm in (True, False):
        model, inputs = Met(norm), (torch.rand(2, 6, 4),)
        spec = discover(model, inputs)
        assert spec.mixed["a.weight[0]"]
        with torch.no_grad():
            model.b.weight[0, 0] = 0
            assert not dead_units(model, spec)["a.weight[0]"].any()
            for parameter in [*model.a.parameters(), *(model.norm.parameters() if norm else ())]:
                parameter[0] = 0
            assert dead_units(model, spec)["a.weight[0]"].tolist() == [not norm, *[False] * 4]


def test_a_parent_on_a_later_axis():
    groups = [Group("head", 2), Group("inner", 3, parents=("head",)), Group("out", 4, frozen="output")]
    axes = [Axis((group.name,), np.arange(group.size)) for group in groups]
    spec = PermutationSpec(groups, {"out": [Block((axes[1], axes[0], axes[2]))]}, reads={"out": (0, 1)}, mixed={})
    weight = torch.ones(3, 2, 4)
    weight[2, 0], weight[0, 1] = 0, 0
    assert dead_units({"out": weight}, spec)["inner"].tolist() == [[False, False, True], [True, False, False]]


def test_whole_heads_and_as_many_dimensions_of_each_as_the_fullest_has():
    row = ARCHITECTURES["bert"]
    model, inputs = random_model(row.build), row.inputs(0)
    attention = model.bert.encoder.layer[0].attention
    with torch.no_grad():
        attention.output.dense.weight[:, 8:16] = 0  # the second of four heads
        attention.output.dense.weight[:, [0, 1, 2, 16, 17, 25, 26, 27, 28]] = 0
    spec = discover(model, inputs, proof="later")
    head, value = (f"bert.encoder.layer.0.attention.self.{name}.weight[0]" for name in ("query", "value"))
    dead = dead_units(model, spec)
    assert dead[head].tolist() == [False, True, False, False]
    assert dead[value].sum(1).tolist() == [3, 8, 2, 4] and not dead[f"{head}#2"][0].any()
    units, _ = live_units(model, spec, None, inputs)
    assert units[head].tolist() == [True, False, True, True] and units[value].sum(1).tolist() == [6, 6, 6, 6]
    assert (units[value] | dead[value])[[0, 2, 3]].all() and dead[f"{head}#2"][1].all()


def test_what_does_not_fit_is_refused():
    model, inputs = layers(4, 5, 3), (torch.rand(6, 4),)
    spec = discover(model, inputs)
    bare = PermutationSpec(spec.groups.values(), spec.tensors)
    for call in (lambda: dead_units(model, bare), lambda: live_units(model, bare, None, inputs)):
        with pytest.raises(UnitError, match="must know which axes"):
            call()
    with pytest.raises(SpecMismatchError):
        dead_units(layers(4, 6, 3), spec)
    with pytest.raises(SpecMismatchError):
        live_units(layers(4, 6, 3), spec, None, inputs)
    with pytest.raises(MaskMismatchError):
        live_units(model, spec, Mask({"0.weight": torch.ones(4, 5, dtype=torch.bool)}), inputs)
