"""The proof of discover: what "full", "fast" and "later" show, what they cost, and that the model is put back."""

import copy
import sys

import pytest
import torch
from architectures import ARCHITECTURES, TwoLayers
from test_inputs import Switch, ids
from test_verify import Cached, wrong_relu
from torch import nn

from hf_lottery.symmetry import in_place, trace
from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.errors import SymmetryError
from hf_lottery.symmetry.in_place import InPlace
from hf_lottery.symmetry.permutation import permute_
from hf_lottery.symmetry.randomised import Randomised


def x(*shape):
    return (torch.randn(shape),)


def state_of(model):
    return {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def same_state(model, state):
    now = dict((*model.named_parameters(), *model.named_buffers()))
    return now.keys() == state.keys() and all(torch.equal(now[name], state[name]) for name in state)


class Counting(TwoLayers):
    """Counts its passes in a buffer, and can fail at one of them."""

    def __init__(self, fails_at=None, error=ZeroDivisionError):
        super().__init__()
        self.register_buffer("passes", torch.zeros(1))
        self.calls, self.fails_at, self.error = [], fails_at, error  # a list keeps what a pass puts into it

    def forward(self, x):
        self.calls.append(1)
        self.passes += 1
        out = super().forward(x)
        if len(self.calls) == self.fails_at:
            raise self.error("in the middle")
        return out


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "llama", "resnet18", "t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_finds_what_full_finds_and_puts_every_bit_back(name, dtype):
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = architecture.build().to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in architecture.inputs(0).items()}
    state, modes = state_of(model), [module.training for module in model.modules()]
    spec = discover(model, inputs, proof="fast")
    assert same_state(model, state) and modes == [module.training for module in model.modules()]
    assert spec.proof == "fast" and spec == discover(model, inputs)


@pytest.mark.parametrize(
    "options", [{"strict": False}, {"exclude": "^head"}, {"outputs": ["0"]}, {"strict": False, "exclude": "^head"}]
)
def test_fast_with_the_other_options(options):
    model, inputs = TwoLayers(), x(3, 6)
    specs = {proof: discover(model, inputs, proof=proof, **options) for proof in ("full", "fast", "later")}
    assert {spec.proof for spec in specs.values()} == {*specs}
    assert specs["full"] == specs["fast"] == specs["later"]
    assert bool(specs["fast"].free) == ("exclude" not in options)


@pytest.mark.parametrize("proof", ["full", "fast"])
def test_a_wrong_group_is_frozen(proof, monkeypatch):
    monkeypatch.setitem(trace.RULES, "relu", wrong_relu)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5))
    state = state_of(model)
    with pytest.warns(UserWarning, match=r"permuting .*: frozen. The tracing rules are wrong") as caught:
        spec = discover(model, x(3, 6), proof=proof)
    assert caught[0].filename == __file__ and same_state(model, state)
    assert list(spec.free) == ["2.weight[0]"] and spec.proof == proof


def test_what_fast_and_later_do_not_show(monkeypatch):
    spec = discover(Switch("cumulative"), (ids(2, 8),), proof="fast")  # it holds at this length alone
    assert "up.weight[0]" in spec.free
    monkeypatch.setitem(trace.RULES, "relu", wrong_relu)
    assert len(discover(TwoLayers(), x(3, 6), proof="later").free) > 1
    with pytest.raises(ValueError, match="proof must be one of"):
        discover(TwoLayers(), x(3, 6), proof="none")  # pyright: ignore[reportArgumentType]


def test_weights_that_are_all_zero_show_nothing_in_place():
    model = TwoLayers()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(SymmetryError, match="depends on the permuted weights"):
        discover(model, x(3, 6), proof="fast")
    assert discover(model, x(3, 6)).free


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("proof", ["full", "fast"])
def test_a_pass_that_fails_leaves_the_model_as_it_was(proof, error):
    for fails_at in (2, 3):
        model = Counting(fails_at, error)
        discover(copy.deepcopy(model), x(3, 6), proof="later")
        model.passes.fill_(7)
        state = state_of(model)
        with pytest.raises((SymmetryError, error)):
            discover(model, x(3, 6), proof=proof)
        assert same_state(model, state)


def test_ctrl_c_at_any_line_leaves_the_model_as_it_was():
    model, inputs = TwoLayers(), x(3, 6)
    state, stop = state_of(model), [0]

    def follow(frame, event, argument):
        if event == "line":
            stop[0] -= 1
            if stop[0] == 0:
                raise KeyboardInterrupt
        return follow

    def enter(frame, event, argument):
        return follow if frame.f_code.co_filename == in_place.__file__ else None

    number, finished = 0, False
    while not finished:
        number += 1
        stop[0] = number
        sys.settrace(enter)
        try:
            with torch.enable_grad():  # Python may skip the end of any other block, which would leave gradients off
                discover(model, inputs, proof="fast")
            finished = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert same_state(model, state), number
    assert number > 40


def test_what_the_model_cached_from_moved_weights_is_forgotten():
    model, inputs = Cached().eval(), x(3, 6)
    before = model(*inputs)
    discover(model, inputs, proof="fast")
    assert torch.equal(model(*inputs), before)


def test_how_often_the_model_runs(monkeypatch):
    calls, forward = [], TwoLayers.forward
    monkeypatch.setattr(TwoLayers, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
    for proof, passes in (("later", [64]), ("full", [64] * 3 + [1] * 4)):
        calls.clear()
        discover(TwoLayers(64), x(64, 6), proof=proof)
        assert calls == passes, proof  # two other widths fail in full
    calls.clear()
    discover(TwoLayers(64), x(64, 6), proof="fast")
    assert 3 <= len(calls) <= 5 and {*calls} == {64}


def test_changes_and_their_inverse_are_exact():
    model = ARCHITECTURES["bert"].build()
    spec = discover(model, ARCHITECTURES["bert"].inputs(0), proof="later")
    state, stage, moved = state_of(model), InPlace(model, spec), copy.deepcopy(model)
    permutation = spec.random(1)
    stage.permute(permutation)
    permute_(moved, permutation)
    assert same_state(model, state_of(moved)) and not same_state(model, state)
    stage.restore()
    stage.disturb(None)
    assert not same_state(model, state)
    stage.restore()
    assert same_state(model, state)


def test_a_copy_is_put_back_by_computing_it_anew():
    model = ARCHITECTURES["resnet18"].build()
    spec = discover(model, ARCHITECTURES["resnet18"].inputs(0), proof="later")
    stage = Randomised(model)
    state = state_of(stage.model)
    assert all(tensor.dtype == torch.float64 for tensor in state.values() if tensor.is_floating_point())
    permutation = spec.random(1)
    stage.permute(permutation)
    moved = copy.deepcopy(stage.model)
    stage.restore()
    assert same_state(stage.model, state)
    permute_(stage.model, permutation)
    assert same_state(stage.model, state_of(moved))


def test_no_two_units_have_the_same_noise():
    """The noise is one block that repeats: no axis must be a multiple of its length."""
    model = nn.Sequential(nn.Linear(1024, 4096, bias=False), nn.Linear(4096, 1024))  # 8 times the block
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    copied = dict(Randomised(model).model.named_parameters())
    for name in ("0.weight", "1.weight"):
        for axis in (0, 1):
            units = copied[name].detach().movedim(axis, 0)
            assert len(torch.unique(units[:, :3], dim=0)) == len(units), (name, axis)
