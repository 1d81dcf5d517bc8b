"""The negative control and the proof against what is wrong: the same as trying everything alone, at a fixed cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, TwoLayers
from torch import nn

from hf_lottery.symmetry.control import Tie, ties
from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.errors import SpecMismatchError, SymmetryVerificationError
from hf_lottery.symmetry.groups import Axis, Block, Group
from hf_lottery.symmetry.permutation import Permutation
from hf_lottery.symmetry.prover import Prover
from hf_lottery.symmetry.randomised import Randomised
from hf_lottery.symmetry.spec import PermutationSpec
from hf_lottery.symmetry.verification import verify

QUICK = ["bert", "densenet", "codebook", "sorted-pool", "lstm", "timm-qkv", "torch-encoder", "vgg"]
WRONG = ["resnet18", "vit", "bert", "gpt2", "llama", "mixtral", "convnext", "t5", "bloom", *QUICK[-3:]]


def rows(names):
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


def built(name):
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    return architecture.build().eval(), architecture.inputs(0)


def with_leaves(tensors, change):
    """The blocks of tensors with other names of some leaves: change(tensor, axis, leaf)."""

    def axis(name, k, one):
        return replace(one, leaves=tuple(change(name, k, leaf) for leaf in one.leaves))

    return {
        name: [Block(tuple(axis(name, k, one) for k, one in enumerate(block.axes))) for block in blocks]
        for name, blocks in tensors.items()
    }


def one_by_one(spec, model, inputs):
    """The exhaustive control: a pass for each tie, which alone is permuted."""
    prover = Prover(Randomised(model), inputs)
    prover.measure()
    first, found = prover.stage.first_names(), []
    for tie in ties(spec):
        other = replace(spec.groups[tie.group], name=f"{tie.group} elsewhere", frozen="elsewhere")
        tensors = with_leaves(
            {tie.tensor: spec.tensors[tie.tensor]},
            lambda n, k, leaf, tie=tie: leaf if leaf != tie.group or k == tie.axis else f"{leaf} elsewhere",
        )
        move = PermutationSpec([*spec.groups.values(), other], tensors).random(0, include=[tie.group]).move
        changes = {first[tie.tensor]: lambda value, tie=tie, move=move: move(tie.tensor, value)}
        if prover.try_out(lambda changes=changes: prover.stage.change(changes)) <= 1e-12:
            found.append((*tie,))
    return found


@pytest.mark.parametrize("name", rows(ARCHITECTURES))
def test_the_control_is_the_exhaustive_one(name):
    model, inputs = built(name)
    spec = discover(model, inputs)
    report = verify(spec, model, inputs)
    assert report.inert == one_by_one(spec, model, inputs)
    assert report.visible + len(report.inert) == len([*ties(spec)])


class Merged(nn.Module):
    """Two sets of units that a spec takes for one, and a parameter that nothing depends on."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(6)) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x) * (self.a**2).sum() + (self.b**3).sum() + 0 * self.c.sum()


def test_what_a_spec_has_merged_is_inert_though_it_has_a_gradient():
    axis = {name: Axis((name,), np.arange(6)) for name in ("units", "in")}
    axis["out"] = Axis(("out",), np.arange(3))
    groups = [Group("units", 6), Group("in", 6, frozen="input"), Group("out", 3, frozen="output")]
    tensors = {name: [Block((axis["units"],))] for name in "abc"}
    tensors |= {"head.weight": [Block((axis["out"], axis["in"]))], "head.bias": [Block((axis["out"],))]}
    spec, inputs = PermutationSpec(groups, tensors), (torch.randn(4, 6),)
    model = Merged()
    assert verify(spec, model, inputs).inert == one_by_one(spec, model, inputs) == [("units", n, 0) for n in "abc"]


class NoGradient(TwoLayers):
    """Computes without gradients, or so that torch cannot compute them."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        if self.kind == "no_grad":
            with torch.no_grad():
                return super().forward(x)
        if self.kind == "detached":
            return super().forward(x).detach()
        if self.kind == "written":
            self.a.bias[0] += 0
        if self.kind == "numpy":
            return self.head(torch.from_numpy(self.a(x).numpy()).relu())
        hidden = self.a(x).relu()
        return self.head(hidden.detach() if self.kind == "half" else hidden)


@pytest.mark.parametrize("kind", ["no_grad", "detached", "written", "numpy", "half", "none"])
@pytest.mark.filterwarnings("ignore:operations without a rule")
def test_without_gradients_the_ties_are_tried(kind):
    spec, inputs = discover(TwoLayers(), (torch.randn(5, 6),)), (torch.randn(5, 6),)
    spec = PermutationSpec(spec.groups.values(), spec.tensors)  # of a network that prints otherwise
    report = verify(spec, NoGradient(kind), inputs)
    assert (report.visible, report.inert) == (3, [])


def test_the_cost_does_not_grow_with_depth(monkeypatch):
    runs, calls, config = [], [], ARCHITECTURES["bert"].build().config
    kind, forward = type(ARCHITECTURES["bert"].build()), nn.Module.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    for depth in (1, 3, 6):
        config.num_hidden_layers = depth
        model, inputs = kind(config).eval(), ARCHITECTURES["bert"].inputs(0)
        spec = discover(model, inputs, proof="later")
        calls.clear()
        assert len(verify(spec, model, inputs).inert) == 2 * depth
        runs.append(len(calls))
    apart = (0, 2, 3)  # passes that tell 1, 3 or 6 groups of four heads apart; larger groups need none
    assert len({number - bits for number, bits in zip(runs, apart, strict=True)}) == 1, runs


# What is wrong is refused.


def without(spec, tie: Tie):
    """One tie taken out of its group."""
    loose = replace(spec.groups[tie.group], name="loose", frozen="taken out")
    change = lambda n, k, leaf: "loose" if (leaf, n, k) == tie else leaf  # noqa: E731
    return PermutationSpec([*spec.groups.values(), loose], with_leaves(spec.tensors, change))


def split(spec, group):
    """The first tensor of a group made a group of its own, which moves too."""
    own = replace(spec.groups[group], name="own")
    tensor = spec.members[group][0][0]
    change = lambda n, k, leaf: "own" if (leaf, n) == (group, tensor) else leaf  # noqa: E731
    return PermutationSpec([*spec.groups.values(), own], with_leaves(spec.tensors, change))


def turned(spec, tensor):
    """The two axes of a square tensor exchanged."""
    blocks = [Block((b.axes[1], b.axes[0], *b.axes[2:])) for b in spec.tensors[tensor]]
    return PermutationSpec(spec.groups.values(), {**spec.tensors, tensor: blocks})


@pytest.mark.parametrize("name", rows(WRONG))
def test_a_spec_with_one_error_is_refused(name):
    model, inputs = built(name)
    spec = discover(model, inputs)
    report = verify(spec, model, inputs)
    every = [tie for tie in ties(spec) if (*tie,) not in report.inert]
    every = [tie for tie in every if len(spec.members[tie.group]) > 1 and not has_children(spec, tie.group)]
    wrong = {f"without {tie}": without(spec, tie) for tie in every[:: max(1, len(every) // 4)]}
    wrong |= {f"split {tie.group}": split(spec, tie.group) for tie in every[:: max(1, len(every) // 2)]
              if any(t.tensor == spec.members[tie.group][0][0] for t in every)}  # fmt: skip
    square = [n for n, shape in spec.shapes.items() if len(shape) > 1 and shape[0] == shape[1] and moved(spec, n)]
    wrong |= {f"turned {n}": turned(spec, n) for n in square[:1]}
    assert len(wrong) > 2
    for what, one in wrong.items():
        try:
            verify(one, model, inputs, negative_control=False)
        except (SymmetryVerificationError, SpecMismatchError):  # the latter where it moves tied tensors apart
            continue
        raise AssertionError(f"{what} was not refused")


def has_children(spec, group):
    return any(group in other.parents for other in spec.groups.values())


def moved(spec, name):
    axes = spec.tensors[name][0].axes
    free = [any(leaf in spec.free for leaf in axis.leaves) for axis in axes[:2]]
    return any(free) and axes[0].leaves != axes[1].leaves


class TwoUnits(nn.Module):
    """A hidden layer of two units: there is only one way to move them."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(6, 2), nn.Linear(2, 5)

    def forward(self, x):
        return self.head(self.a(x).tanh())


def test_two_groups_that_can_only_move_in_one_way_do_not_hide_each_other():
    """Split, both halves of a pair exchange the same two units, and together that is legal."""
    model, inputs = TwoUnits(), (torch.randn(5, 6),)
    spec = discover(model, inputs)
    wrong = split(spec, "a.weight[0]")
    together = Permutation(wrong, {"a.weight[0]": [1, 0], "own": [1, 0]})
    assert Prover(Randomised(model), inputs).error_of(together) < 1e-12
    with pytest.raises(SymmetryVerificationError):
        verify(wrong, model, inputs)
