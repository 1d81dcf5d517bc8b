"""verify(): what it proves, what it must refuse to prove, and the traps that only a run shows."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, TimmAttention, TwoLayers
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.errors import SymmetryError, SymmetryVerificationError
from hf_lottery.symmetry.groups import Axis, Block, Group
from hf_lottery.symmetry.permutation import permute_
from hf_lottery.symmetry.prover import Prover, culprits
from hf_lottery.symmetry.randomised import Randomised
from hf_lottery.symmetry.spec import PermutationSpec
from hf_lottery.symmetry.trace import plain_kernels
from hf_lottery.symmetry.verification import VerifyReport, verify


def without_tie(spec: PermutationSpec, group: str, tensor: str) -> PermutationSpec:
    """The spec with one tensor's axis taken out of a group."""
    loose = Group("loose", spec.groups[group].size, frozen="the tie was deleted")
    blocks = [
        Block(tuple(replace(a, leaves=tuple("loose" if x == group else x for x in a.leaves)) for a in block.axes))
        for block in spec.tensors[tensor]
    ]
    return PermutationSpec([*spec.groups.values(), loose], {**spec.tensors, tensor: blocks})


def unfrozen(spec: PermutationSpec, group: str) -> PermutationSpec:
    groups = [replace(g, frozen=None) if g.name == group else g for g in spec.groups.values()]
    return PermutationSpec(groups, spec.tensors)


def x(*shape):
    return (torch.randn(shape),)


# Negative controls.


def test_a_report_of_what_was_proved():
    model = TwoLayers()
    report = verify(discover(model, x(3, 6)), model, x(4, 6))
    assert report.error < 1e-12 and report.errors.keys() == {"a.weight[0]"}
    assert report.visible == 3 and report.inert == []


@pytest.mark.parametrize("name", ["bert", "llama", "resnet18"])
def test_a_deleted_tie_is_found(name):
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = architecture.build().eval()
    spec = discover(model, architecture.inputs(0))
    group = next(name for name, g in spec.free.items() if not g.parents and len(spec.members[name]) > 2)
    for tensor, _ in spec.members[group][:4]:
        broken = without_tie(spec, group, tensor)
        with pytest.raises(
            SymmetryVerificationError, match=r"must leave every output within 1e-08; received .* by"
        ) as e:
            verify(broken, model, architecture.inputs(1), negative_control=False)
        assert group in str(e.value)


@pytest.mark.parametrize("name", ["llama", "vit", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_an_axis_that_was_unfrozen_is_found(name):
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = architecture.build().eval()
    spec = discover(model, architecture.inputs(0))
    parameters = dict(model.named_parameters())
    tested = 0
    for group in spec.groups.values():
        if group.frozen is None or group.size < 2 or not any(t in parameters for t, _ in spec.members[group.name]):
            continue
        # A vocabulary has words that the inputs do not show, and a table of angles could move with queries and keys.
        if "looked up" in group.frozen or "constant buffer" in group.frozen:
            continue
        with pytest.raises(SymmetryVerificationError):
            verify(unfrozen(spec, group.name), model, architecture.inputs(1), negative_control=False)
        tested += 1
    assert tested


def wrong_relu(trace, out, source):
    """A rule that forgets the tie between the input and the output."""
    from hf_lottery.symmetry.nodes import atom

    return tuple(atom(size) for size in out.shape)


def test_discover_freezes_the_culprit_with_a_warning(monkeypatch):
    from hf_lottery.symmetry import trace

    monkeypatch.setitem(trace.RULES, "relu", wrong_relu)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5))
    with pytest.warns(UserWarning, match="changes the outputs by .*: frozen. The tracing rules are wrong"):
        spec = discover(model, x(3, 6))
    assert list(spec.free) == ["2.weight[0]"]  # what is sound stays
    assert spec.groups["0.weight[0]"].frozen == "verification failed"
    assert verify(spec, model, x(7, 6)).error < 1e-8


class Product(nn.Module):
    """Wrong only if both halves move: one fails alone in neither order."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.start = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6)), None

    def forward(self, x):
        self.start = self.start or (self.a.clone(), self.b.clone())
        a, b = self.a - self.start[0], self.b - self.start[1]
        return x.sum() + self.a.sum() + self.b.sum() + a.abs().sum() * b.abs().sum()


def test_culprits_of_a_combination():
    axes = {name: Axis((name,), np.arange(6)) for name in "ab"}
    spec = PermutationSpec([Group("a", 6), Group("b", 6)], {n: [Block((axes[n],))] for n in "ab"})
    prover = Prover(Randomised(Product()), x(3))
    assert culprits(spec, prover, list(spec.free)) == ["b"]


def test_a_bias_that_softmax_ignores_is_reported():
    architecture = ARCHITECTURES["bert"]
    torch.manual_seed(0)
    model = architecture.build().eval()
    report = verify(discover(model, architecture.inputs(0)), model, architecture.inputs(1))
    assert {tensor for _, tensor, _ in report.inert} == {
        f"bert.encoder.layer.{i}.attention.self.key.bias" for i in range(3)
    }
    assert report.visible > 80


class Unsaved(TwoLayers):
    def __init__(self):
        super().__init__()
        self.register_buffer("unsaved", torch.randn(8), persistent=False)

    def forward(self, x):
        return self.head(self.a(x) * self.unsaved)


def test_the_copy_is_put_back_also_buffers_that_are_not_saved():
    prover = Prover(Randomised(Unsaved()), x(3, 6))
    assert prover.try_out(lambda: prover.stage.change({"unsaved": torch.zeros_like})) > 0
    assert prover.before.change(prover.run()) == 0


# Traps


class Recurrence(nn.Module):
    """1. What is constant is written through slices."""

    def __init__(self):
        super().__init__()
        self.a, self.decay, self.head = nn.Linear(6, 8), nn.Parameter(torch.rand(8)), nn.Linear(8, 5)

    def forward(self, x):
        x = self.a(x)
        out, state = torch.zeros_like(x), torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            state = state * self.decay + x[:, t]
            out[:, t] = state
        return self.head(out)


def test_trap_what_is_constant_is_written_in_parts():
    model = Recurrence()
    spec = discover(model, x(2, 4, 6))
    assert {tensor for tensor, _ in spec.members["decay[0]"]} == {"decay", "a.weight", "a.bias", "head.weight"}
    report = verify(spec, model, x(3, 7, 6))
    assert report.visible == 4 and len(spec.free) == 1


class GroupedPositions(nn.Module):
    """2. A grouped convolution on a residual stream: only whole groups, and the same inner order in each."""

    def __init__(self):
        super().__init__()
        self.a, self.conv, self.head = nn.Linear(6, 12), nn.Conv1d(12, 12, 3, padding=1, groups=3), nn.Linear(12, 5)

    def forward(self, x):
        x = self.a(x)
        return self.head(x + F.gelu(self.conv(x.transpose(1, 2))).transpose(1, 2))


def test_trap_dependence_pairs():
    model = GroupedPositions()
    spec = discover(model, x(2, 7, 6))
    assert verify(spec, model, x(3, 9, 6)).error < 1e-8 and spec.free


class Upcast(TwoLayers):
    """3. Single precision asked for in the middle of a double network."""

    def forward(self, x):
        h = self.a(x).to(torch.float32)
        return self.head((h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True))).to(x.dtype))


def test_trap_upcasts():
    assert verify(discover(Upcast(), x(3, 6)), Upcast(), x(5, 6)).error < 1e-12


class Cached(TwoLayers):
    """4. What was computed from weights is kept until train()."""

    def __init__(self):
        super().__init__()
        self.cache = None

    def train(self, mode=True):
        self.cache = None if mode else self.cache
        return super().train(mode)

    def forward(self, x):
        if self.cache is None:
            self.cache = self.a.weight.exp()
        return self.head((x @ self.cache.T + self.a.bias).relu())


def test_trap_cached_weights():
    model = Cached().eval()
    inputs = x(3, 6)
    before = model(*inputs)
    spec = discover(model, inputs)
    permute_(model, spec.random(0))
    torch.testing.assert_close(model(*inputs), before)


def test_trap_a_tracing_input_that_leaves_out_an_expert():
    """The unhit expert is named; that the spec holds for inputs that hit it is not claimed."""
    from test_discover import Experts

    few = torch.randn(4, 6)
    few[:, 0] = few[:, 0].abs()
    with pytest.raises(ValueError, match=r"no use of \['experts.0.weight'"):
        discover(Experts(False), (few,))
    spec = discover(Experts(False), (few,), strict=False)
    with pytest.raises(SymmetryVerificationError):
        verify(spec, Experts(False), (-few,))


def test_trap_zeros_would_make_the_check_empty():
    model = TwoLayers()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    spec = discover(model, x(3, 6))
    assert verify(spec, model, x(3, 6)).inert == []
    with pytest.raises(SymmetryVerificationError):
        verify(without_tie(spec, "a.weight[0]", "a.bias"), model, x(3, 6))


class Buffers(nn.Module):
    """7. Statistics and masks move, tables do not."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        self.register_buffer("slopes", torch.arange(8.0))
        self.register_buffer("correction_bias", torch.randn(8))
        self.register_buffer("scale", torch.full((8,), 2.0))

    def forward(self, x):
        x = self.norm(self.a(x)) * self.scale + self.correction_bias
        return self.head(self.b(x).relu() * self.slopes)


def test_trap_buffers():
    model = Buffers().eval()
    prune.random_unstructured(model.a, "weight", 0.5)
    spec = discover(model, x(3, 6))
    moving = {tensor for name in spec.free for tensor, _ in spec.members[name]}
    assert {"norm.running_mean", "norm.running_var", "a.weight_mask", "correction_bias", "scale"} <= moving
    assert "slopes" not in moving and "a constant buffer" in spec.explain("b.bias")
    report = verify(spec, model, x(5, 6))
    assert {tensor for _, tensor, _ in report.inert} <= {"scale"}


def test_trap_the_fast_path_of_attention():
    with plain_kernels(nn.Linear(1, 1)):
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    model = nn.Sequential(nn.Linear(6, 16), layer, nn.Linear(16, 5))
    assert len(discover(model, x(2, 7, 6)).free) == 5


class TwoOutputs(TwoLayers):
    """9. Logits, and something else that counts; hidden states do not."""

    def forward(self, x):
        h = self.a(x)
        return {"logits": self.head(h), "boxes": h[:, :2], "hidden_states": (h,)}


def test_trap_every_output_counts():
    model = TwoOutputs()
    spec = discover(model, x(3, 6))
    assert sum(group.size for group in spec.free.values()) == 6  # the two boxes stay where they are
    assert sum(group.size for group in discover(model, x(3, 6), outputs=["logits"]).free.values()) == 8
    with pytest.raises(SymmetryError, match=r"depends on the permuted weights; received \['hidden_states'\]"):
        discover(model, x(3, 6), outputs=["hidden_states"])  # only the head could move, which they do not show


class Squared(nn.Module):
    """10. The same group on both axes."""

    def __init__(self):
        super().__init__()
        self.a, self.w, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.w(self.w(self.a(x)).tanh()))


def test_trap_one_group_on_both_axes():
    spec = discover(Squared(), x(3, 6))
    assert len(spec.free) == 1 and {("w.weight", 0), ("w.weight", 1)} <= set(spec.members[next(iter(spec.free))])
    assert verify(spec, Squared(), x(5, 6)).error < 1e-12


def test_blocks_are_permuted_each_by_its_own():
    """The fused q|k|v: three blocks, of which q and k share their order and v has its own."""
    model = TimmAttention()
    spec = discover(model, (torch.randn(2, 7, 6),))
    leaves = [block.axes[0].leaves for block in spec.tensors["qkv.weight"]]
    assert leaves[0] == leaves[1] != leaves[2] and leaves[0][0] == leaves[2][0]


def test_the_model_is_left_alone():
    model = TwoLayers().train()
    before = copy.deepcopy(model.state_dict())
    verify(discover(model, x(3, 6)), model, x(3, 6))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_spec_verifies_itself():
    model = TwoLayers()
    spec = discover(model, (torch.randn(4, 6),))
    inputs = (torch.randn(7, 6),)
    assert spec.verify(model, inputs, seed=3) == verify(spec, model, inputs, seed=3)
    with pytest.raises(SymmetryVerificationError, match="must leave every output within 0"):
        spec.verify(model, inputs, rtol=0)


def test_a_report_prints_as_a_table():
    model = TwoLayers()
    report = discover(model, x(3, 6)).verify(model, x(4, 6))
    title, header, row = repr(report).splitlines()
    assert title.startswith("VerifyReport(groups: 1, largest change of an output: ")
    assert title.endswith("control: 3 of 3 axes matter, inputs: 0 (4, 6) and 0 (1, 6))")
    assert header == "group         change  proof is empty for" and row.split()[0] == "a.weight[0]"


def test_a_long_report_shows_the_worst_group_first():
    errors = {f"<b>{i}": i * 1e-12 for i in range(30)}
    inert = [("<b>29", "key.bias", axis) for axis in range(4)]
    report = VerifyReport(3e-11, errors, inert)
    lines = repr(report).splitlines()
    assert lines[0] == "VerifyReport(groups: 30, largest change of an output: 3.0e-11, control: 0 of 4 axes matter)"
    assert lines[2].split(None, 2) == ["<b>29", "2.9e-11", "key.bias[0], key.bias[1] and 2 more"]
    assert len(lines) == 23 and lines[-1] == "... and 10 more"
    html = report._repr_html_()
    assert "&lt;b&gt;29" in html and "<b>" not in html and "and 10 more" in html
    assert repr(VerifyReport(1e-13)).splitlines()[0] == "VerifyReport(groups: 0, largest change of an output: 1.0e-13)"


@pytest.mark.parametrize("negative_control", [True, False])
def test_a_spec_in_which_nothing_moves_is_verified(negative_control):
    model, inputs = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.randn(5, 4),)
    report = discover(model, inputs, exclude=".*").verify(model, inputs, negative_control=negative_control)
    assert report.error == 0 and not report.errors and not report.inert and not report.visible
