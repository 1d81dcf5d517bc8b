"""Which outputs count, of any kind; and what is no proof."""

import math
from collections import namedtuple
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import TwoLayers
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.errors import SymmetryError, SymmetryVerificationError
from hf_lottery.symmetry.outputs import chosen_outputs
from hf_lottery.symmetry.prover import Prover
from hf_lottery.symmetry.randomised import Randomised
from hf_lottery.symmetry.spec import PermutationSpec

Pair = namedtuple("Pair", ["logits", "hidden_states"])


@dataclass
class Output:
    logits: object
    label: str = "cat"


@dataclass(slots=True)
class Slotted:
    logits: object


class Network(nn.Module):
    """Returns its logits in some wrapping."""

    def __init__(self, wrap):
        super().__init__()
        self.a, self.b, self.wrap = nn.Linear(6, 8), nn.Linear(8, 5), wrap

    def forward(self, x):
        return self.wrap(self.b(self.a(x).relu()))


def normal(logits):
    return torch.distributions.Normal(logits, logits.exp())


WRAPPINGS = {
    "tensor": lambda t: t,
    "dict": lambda t: {"logits": t, 3: None},
    "tuple": lambda t: (None, t, "text"),
    "list": lambda t: [t, t],
    "namedtuple": lambda t: Pair(t, (t,)),
    "dataclass": Output,
    "dataclass with slots": Slotted,
    "object": lambda t: SimpleNamespace(logits=t, config={"size": 8}),
    "object that refers to itself": lambda t: (lambda s: [setattr(s, "me", s), s][1])(SimpleNamespace(logits=t)),
    "normal": normal,
    "categorical": lambda t: torch.distributions.Categorical(logits=t),
    "independent": lambda t: torch.distributions.Independent(normal(t), 1),
    "mixture": lambda t: torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=t), normal(t)),
    "nested": lambda t: {"steps": [Output({"deep": (Slotted([t]),)})]},
    "packed sequence": lambda t: pack_padded_sequence(t[None], torch.tensor([len(t)]), batch_first=True),
    "numpy": lambda t: {"logits": t.numpy()},
    "numbers": lambda t: {"loss": t.sum().item(), "all": t.tolist()},
    "complex": lambda t: torch.complex(t, t * 2),
    "sparse": lambda t: t.to_sparse(),
    "half precision": lambda t: t.bfloat16(),
}


def changed(prover, name, change):
    return prover.try_out(lambda: prover.stage.change({name: change}))


@pytest.mark.filterwarnings("ignore:operations without a rule")  # _to_sparse
@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_outputs_of_any_kind_count(wrap):
    model, x = Network(wrap), torch.randn(3, 6)
    spec = discover(model, (x,))
    assert "b.weight[0]" not in spec.free and list(spec.free) == ["a.weight[0]"]
    prover = Prover(Randomised(model), (x,))
    assert prover.error_of(spec.random(1)) < 1e-10
    assert changed(prover, "b.weight", lambda value: value.flip(0)) > 1e-3


NONE = {
    "nothing": lambda t: None,
    "a text": lambda t: "cat",
    "a function": lambda t: lambda: t,
    "a generator": lambda t: (row for row in t),
    "empty containers": lambda t: {"logits": [], "texts": ["cat", Output(None)]},
    "the module itself": lambda t: nn.Identity(),
}


@pytest.mark.parametrize("wrap", NONE.values(), ids=NONE)
def test_outputs_that_are_not_found_are_refused(wrap):
    with pytest.raises(SymmetryError, match="outputs must be tensors or numbers.*holds none.*return its tensors"):
        discover(Network(wrap), (torch.randn(3, 6),))


def test_fields_are_chosen_by_name_in_every_kind():
    t = torch.ones(2)
    for result in ({"logits": t, "attentions": t}, SimpleNamespace(logits=t, attentions=t)):
        assert [*chosen_outputs(result, None)] == ["logits"] and [*chosen_outputs(result, ["attentions"])] == [
            "attentions"
        ]
    assert [*chosen_outputs(Pair(t, t), None)] == ["logits"] and [*chosen_outputs((t, t), ["1"])] == ["1"]
    with pytest.raises(SymmetryError, match=r"fields of \['logits'\]; received 'label'"):
        chosen_outputs(Output(t), ["label"])
    with pytest.raises(SymmetryError, match="without a head"):
        chosen_outputs(SimpleNamespace(last_hidden_state=t), None)


def test_a_cache_in_a_tuple_is_no_output():
    cache = SimpleNamespace(keys=torch.ones(2), get_seq_length=lambda: 2)
    assert [*chosen_outputs((torch.ones(2), cache), None)] == ["0"]


INNER = {
    "hidden states of a part": {"image_hidden_states": 1, "intermediate_hidden_states": (1,)},
    "outputs of parts": {"text_model_output": {"last_hidden_state": 1, "pooler_output": 1, "attentions": (1, 1)}},
    "deeper": {"parts": [{"a": {"encoder_last_hidden_state": 1}}, Pair(None, (1,))]},
    "caches": {"decoder_past_key_values": [1], "memory": {"b": SimpleNamespace(keys=1, get_seq_length=lambda: 2)}},
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_the_inside_of_a_part_is_no_output(inner):
    assert [*chosen_outputs({"logits": torch.ones(2), **inner}, None)] == ["logits"]
    chosen = chosen_outputs({"logits": torch.ones(2), **inner}, [*inner])  # what is named counts with all that is in it
    assert chosen and "logits" not in chosen
    with pytest.raises(SymmetryError, match="without a head"):
        chosen_outputs(inner, None)
    with pytest.raises(SymmetryError, match=r"fields of \[.*'logits'.*\]; received 'other'"):
        chosen_outputs({"logits": torch.ones(2), **inner}, ["other"])


def test_what_a_part_computes_is_an_output():
    result = {"logits": 1, "parts": [{"embeds": 2, "last_hidden_state": 3}], "state_of_mind": 4, "hidden": 5}
    assert {name: int(value) for name, value in chosen_outputs(result, None).items()} == {
        "logits": 1, "parts": 2, "state_of_mind": 4, "hidden": 5
    }  # fmt: skip


# What is no proof.

NO_PROOF = {
    "NaN": (lambda t: torch.where(t > 0, t, math.nan), "received NaN in the output '0'"),
    "infinite": (lambda t: t * math.inf, "no finite number in the output '0'|NaN"),
    "constant": (lambda t: torch.ones(3) + 0 * t.sum().sign().abs(), "depends on the permuted weights"),
    "zero": (lambda t: t * 0, "depends on the permuted weights"),
    "masked out": (lambda t: t.masked_fill(t == t, -3e38), "depends on the permuted weights"),
    "detached": (lambda t: {"mask": torch.ones(3), "n": 4}, "depends on the permuted weights"),
    "labels": (lambda t: t.argmax(-1), "received integers alone"),
    "signs": (lambda t: t > 0, "received integers alone"),
    "a count": (lambda t: int((t > 0).sum()), "received integers alone|stay the same"),
}


@pytest.mark.parametrize(("wrap", "message"), NO_PROOF.values(), ids=NO_PROOF)
def test_outputs_that_prove_nothing_are_refused(wrap, message):
    with pytest.raises(SymmetryError, match=message):
        discover(Network(wrap), (torch.randn(7, 6),))


def huge_first(t):
    return torch.cat([t, 1e30 * t[:, :1]], -1)


SHOWN = {
    "one masked logit": lambda t: t.masked_fill(torch.arange(5) == 4, -3e38),
    "most logits masked": lambda t: t.masked_fill(torch.arange(5) > 1, torch.finfo(torch.float32).min),
    "masked with infinity": lambda t: t.masked_fill(torch.arange(5) == 4, -math.inf),
    "both infinities": lambda t: torch.cat(
        [t, torch.full((len(t), 2), math.inf), torch.full((len(t), 2), -math.inf)], 1
    ),
    "one huge number": huge_first,
    "a huge row": lambda t: torch.cat([t, 1e30 * t[:1]]),
    "half huge": lambda t: torch.cat([t, 1e30 * t[:, :4]], -1),
    "large integers beside it": lambda t: {"logits": t, "hash": torch.full((3,), 2**62)},
}


@pytest.mark.parametrize("wrap", SHOWN.values(), ids=SHOWN)
def test_a_change_is_not_hidden(wrap):
    """Two logits that change places are found, whatever stands beside them, and a legal permutation is no change."""
    model = Network(wrap)
    prover = Prover(Randomised(model), (torch.randn(7, 6),))
    order = torch.tensor([1, 0, 2, 3, 4])
    assert changed(prover, "b.bias", lambda value: value[order]) > 1e-3
    assert changed(prover, "b.bias", lambda value: value * (1 + 1e-6 * (torch.arange(5) == 0))) > 1e-8
    spec = discover(model, (torch.randn(7, 6),))
    assert list(spec.free) == ["a.weight[0]"] and spec.verify(model, (torch.randn(7, 6),)).error < 1e-10


def test_integers_must_be_the_same():
    both = Network(lambda t: {"logits": t, "ids": t.argmax(-1) + 2**60})
    prover = Prover(Randomised(both), (torch.randn(64, 6),), outputs=["logits", "ids"])
    prover.before.values.pop("logits")
    after = {"ids": prover.before.values["ids"] + (torch.arange(64) == 3)}
    assert prover.before.change(after) == 1 / 64
    assert prover.before.change({"ids": after["ids"][1:]}) == math.inf and prover.before.change({}) == math.inf


def test_values_that_stop_being_finite_are_a_change():
    before = Prover(Randomised(Network(huge_first)), (torch.randn(3, 6),)).before
    for bad in (math.nan, math.inf):
        after = {name: value.clone() for name, value in before.values.items()}
        after["0"][0, 0] = bad
        assert before.change(after) == math.inf


def test_an_output_that_shows_the_weights_is_compared_with_what_it_was():
    class Shows(TwoLayers):
        def forward(self, x):
            return {"logits": super().forward(x), "weight": self.head.weight}

    model = Shows()
    prover = Prover(Randomised(model), (torch.randn(3, 6),))
    assert changed(prover, "head.weight", lambda value: value.roll(1, 1)) > 1e-3
    assert not discover(model, (torch.randn(3, 6),)).free


# Inputs.


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        (torch.randn(3, 6), TypeError, r"received Tensor. Write inputs=\(x,\)"),
        ([torch.randn(3, 6)], TypeError, r"received list. Write inputs=tuple\(batch\)"),
        (iter([(torch.randn(3, 6),)]), TypeError, "received list_iterator. Write inputs=next"),
        ((torch.randn(3, 6), torch.ones(3)), SymmetryError, "received a tuple of 2 .*Leave out what it does not take"),
        ({"x": torch.randn(3, 6), "y": 1}, SymmetryError, r"received the keys \['x', 'y'\].*targets"),
    ],
)
def test_inputs_that_are_no_call(inputs, kind, message):
    model = TwoLayers()
    spec = discover(model, (torch.randn(3, 6),))
    for call in (lambda: discover(model, inputs), lambda: spec.verify(model, inputs)):
        with pytest.raises(kind, match=message):
            call()


def test_batches_of_the_tokenizers_kind():
    from transformers import BatchFeature

    spec = discover(TwoLayers(), BatchFeature({"x": torch.randn(3, 6)}))
    assert spec.verify(TwoLayers(), BatchFeature({"x": torch.randn(3, 6)})).error < 1e-10


class Wrapped(TwoLayers):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(super().forward(x))


def unfrozen(spec, group):
    groups = [replace(g, frozen=None) if g.name == group else g for g in spec.groups.values()]
    return PermutationSpec(groups, spec.tensors)


def test_numpy_and_numbers_are_compared():
    found = chosen_outputs({"a": np.float32(2), "b": 3, "c": np.array(["text"])}, None)
    assert {name: value.item() for name, value in found.items()} == {"a": 2.0, "b": 3}
    spec = discover(TwoLayers(), (torch.randn(3, 6),))
    wrong = unfrozen(spec, "head.weight[0]")
    for wrap in (lambda t: {"x": t.tolist()}, lambda t: {"x": t.numpy()}):
        with pytest.raises(SymmetryVerificationError, match="by .'head.weight.0.'"):
            wrong.verify(Wrapped(wrap), (torch.randn(3, 6),))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"x": t, "mean": (t - t.mean(-1, keepdim=True)).mean(-1)},
        lambda t: torch.cat([t[:, :1], t.softmax(-1).log() - t.log_softmax(-1)], -1),
    ],
    ids=["a mean of zero", "most of an output"],
)
def test_numbers_that_are_nothing_but_rounding_freeze_nothing(wrap):
    spec = discover(Wrapped(wrap), (torch.randn(3, 6),))
    assert spec.free
    assert spec.verify(Wrapped(wrap), (torch.randn(3, 6),)).error < 1e-8


def test_small_outputs_beside_large_ones_are_compared():
    spec = discover(TwoLayers(), (torch.randn(3, 6),))
    model = Wrapped(lambda t: {"sum": 1e3 * t.sum(-1), "small": 1e-10 * t})
    with pytest.raises(SymmetryVerificationError, match="by .'head.weight.0.'"):
        unfrozen(spec, "head.weight[0]").verify(model, (torch.randn(3, 6),))
