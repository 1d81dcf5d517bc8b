"""discover(): every architecture of the measured table, what a user gets from it, and each refusal."""

import copy
import time
import warnings

import pytest
import torch
from architectures import ARCHITECTURES, TwoLayers
from torch import nn

from hf_lottery import Mask, prunable
from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.errors import SymmetryError
from hf_lottery.symmetry.permutation import permute_
from hf_lottery.symmetry.verification import verify


def randomised(architecture):
    """A model whose parameters are all different from their initial zeros and ones."""
    torch.manual_seed(0)
    model = architecture.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.1))
    return model


ROWS = [
    pytest.param(name, marks=[pytest.mark.slow] if architecture.slow else [])
    for name, architecture in ARCHITECTURES.items()
]


@pytest.mark.parametrize("name", ["mixtral", "llama"])
def test_positions_that_are_compared_cut_nothing(name):
    """Without a cache, transformers compares neighbouring positions: groups and nesting stay as with one."""
    model, found = randomised(ARCHITECTURES[name]), []
    ids = torch.randint(3, 60, (2, 24))
    for cache in (True, False):
        spec = discover(model, {"input_ids": ids, "use_cache": cache})
        found.append({group: (one.size, one.parents, one.frozen is None) for group, one in spec.groups.items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ROWS)
def test_architecture(name):
    architecture = ARCHITECTURES[name]
    model = randomised(architecture)
    spec = discover(model, architecture.inputs(0))  # a rule that is missing or wrong would warn
    report = verify(spec, model, architecture.inputs(1), negative_control=False)
    assert report.error < 1e-8 and max(report.errors.values()) < 1e-8
    nested = sum(bool(group.parents) for group in spec.free.values())
    assert (len(spec.free), nested) == (architecture.groups, architecture.nested), spec
    some, both = spec.coverage(names=prunable(model, include=".*"))
    assert some >= architecture.some - 1e-9 and both >= architecture.both, (some, both)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_the_function_that_public_tools_break_stays_to_1e_8(name):
    architecture = ARCHITECTURES[name]
    model, inputs = randomised(architecture).double(), architecture.inputs(1)
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    spec, before = discover(model, inputs), model(**inputs).logits
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    permutation = spec.random(seed=3)
    permute_(model, permutation)
    assert (model(**inputs).logits - before).abs().max() / before.abs().max() < 1e-8
    moved = sum(not torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert moved > 0.8 * len(weights)  # it is not that nothing happened
    permute_(model, permutation.inverse())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "gpt2", "llama", "mixtral"])
def test_masks_move_with_their_weights(name):
    architecture = ARCHITECTURES[name]
    model = randomised(architecture)
    permutation = discover(model, architecture.inputs(0)).random(seed=1)
    weights = {key: p for key, p in model.named_parameters() if p.ndim >= 2}
    mask = Mask({key: torch.rand(p.shape) > 0.7 for key, p in weights.items()})
    with torch.no_grad():
        for key, parameter in weights.items():
            parameter.mul_(mask[key])
    permute_(model, permutation)
    moved = permutation(mask)
    for key, parameter in weights.items():
        assert torch.equal(parameter != 0, moved[key])
        assert moved[key].sum() == mask[key].sum()


def test_nothing_of_the_model_changes():
    architecture = ARCHITECTURES["bert"]
    model = randomised(architecture).train()
    model.bert.pooler.eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    discover(model, architecture.inputs(0))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert model.training and not model.bert.pooler.training and model.bert.encoder.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_twelve_layers_take_less_than_a_second(name):
    architecture = ARCHITECTURES[name]
    config = architecture.build().config
    config.num_hidden_layers = 12
    model = type(architecture.build())(config)
    best = float("inf")
    for _ in range(3):  # the first call warms up
        start = time.process_time()  # another process may take the core
        discover(model, architecture.inputs(0))
        best = min(best, time.process_time() - start)
    assert best < 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    architecture = ARCHITECTURES["llama"]
    spec = discover(randomised(architecture).to(dtype), architecture.inputs(0))
    assert len(spec.free) == architecture.groups


def test_tuple_inputs_wrappers_and_chosen_axes():
    model = TwoLayers()
    x = torch.randn(3, 6)
    assert list(discover(model, (x,)).free) == ["a.weight[0]"]
    assert discover(torch.nn.DataParallel(model), (x,)) == discover(model, {"x": x})
    for exclude in (r"^a\.", [r"^a\."], ["a.weight", "a.bias"]):
        spec = discover(model, (x,), exclude=exclude)
        assert not spec.free and "frozen: excluded by" in spec.explain("head.weight")


def test_a_frozen_axis_remembers_why():
    architecture = ARCHITECTURES["llama"]
    spec = discover(randomised(architecture), architecture.inputs(0))
    assert "looked up by position" in spec.explain("model.embed_tokens.weight")
    assert "the output logits" in spec.explain("lm_head.weight")
    assert "frozen: cut at fixed places" in spec.explain("model.layers.0.self_attn.q_proj.weight") or (
        "frozen:" in spec.explain("model.layers.0.self_attn.q_proj.weight")
    )


# What cannot be done.


def refuses(contract, received, model, inputs=None, kind=SymmetryError, **options):
    with pytest.raises(kind) as caught:
        discover(model, (torch.randn(3, 6),) if inputs is None else inputs, **options)
    assert contract in str(caught.value) and received in str(caught.value), str(caught.value)
    return caught.value


def test_arguments_of_the_wrong_kind():
    refuses("inputs must be", "received Tensor", TwoLayers(), torch.randn(3, 6), TypeError)
    refuses("inputs must be", "received list", TwoLayers(), [torch.randn(3, 6)], TypeError)
    refuses("model must be a torch module", "received function", lambda x: x, kind=TypeError)
    refuses("outputs must be a list", "'0'", TwoLayers(), kind=TypeError, outputs="0")


def test_patterns_are_checked():
    message = "exclude must match the name of a parameter or buffer"
    refuses(message, "'decoder'", TwoLayers(), exclude=["a", "decoder"])
    refuses("exclude must be a valid regular expression", "'('", TwoLayers(), exclude=["("])


def test_quantised_weights():
    model = TwoLayers()
    model.head.weight = nn.Parameter(torch.zeros(5, 8, dtype=torch.int8), requires_grad=False)
    refuses("parameters must be plain floating tensors", "'head.weight' of torch.int8", model)


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta:UserWarning")
def test_sparse_weights():
    model = TwoLayers()
    for layout in (torch.sparse_csr, torch.sparse_coo):
        model.head.weight = nn.Parameter(torch.eye(5, 8).to_sparse(layout=layout))
        refuses("parameters must be plain floating tensors", f"'head.weight' in the layout {layout}", model)


def test_weights_that_are_not_there():
    with torch.device("meta"):
        model = TwoLayers()
    refuses("the weights and inputs must be loaded", "'a.weight' on the meta device", model)
    refuses("the model must have parameters", "received none", nn.ReLU())


class Unused(TwoLayers):
    def __init__(self):
        super().__init__()
        self.expert = nn.Linear(8, 8)


def test_a_parameter_that_the_pass_does_not_reach():
    refuses("every parameter must take part", "['expert.weight', 'expert.bias']", Unused())
    spec = discover(Unused(), (torch.randn(3, 6),), strict=False)
    assert "did not reach it" in spec.explain("expert.weight") and list(spec.free) == ["a.weight[0]"]


class Experts(nn.Module):
    """Experts as a list; which one a row goes to depends on its sign. An expert without rows gets none."""

    def __init__(self, loops_over_all: bool):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.experts, self.head = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), nn.Linear(8, 5)
        self.loops_over_all = loops_over_all

    def forward(self, x):
        out = torch.zeros(len(x), 8, dtype=x.dtype)
        h = self.embed(x)
        for k, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0).long() == k).nonzero()[:, 0]
            if len(rows) or self.loops_over_all:
                out.index_add_(0, rows, expert(h[rows]).relu())
        return self.head(h + out)


def test_an_expert_without_tokens():
    x = torch.randn(6, 6)
    x[:, 0] = x[:, 0].abs()
    refuses("every parameter must take part", "['experts.0.weight', 'experts.0.bias']", Experts(False), (x,))
    # If it is called with no rows at all, what it does is known.
    spec = discover(Experts(True), (x,))
    assert verify(spec, Experts(True), (torch.randn(9, 6),)).error < 1e-8
    assert spec.free and ("experts.0.weight", 0) in spec.members["embed.weight[0]"]


class Fails(TwoLayers):
    def forward(self, x):
        raise ZeroDivisionError("a bug of the model")


def test_a_forward_that_fails():
    error = refuses("the model must run on the inputs", "ZeroDivisionError: a bug of the model", Fails())
    assert isinstance(error.__cause__, ZeroDivisionError)
    error = refuses("the arguments of TwoLayers.forward", "['y']", TwoLayers(), {"y": torch.randn(3, 6)})
    assert isinstance(error.__cause__, TypeError)


class OnlySingle(TwoLayers):
    """Stands for a kernel that has no float64."""

    def forward(self, x):
        if x.dtype == torch.float64:
            raise NotImplementedError("no kernel for Double")
        return super().forward(x)


def test_a_model_that_cannot_be_verified():
    error = refuses("must run in float64 on the CPU to be verified", "no kernel for Double", OnlySingle())
    assert isinstance(error.__cause__, NotImplementedError)


class Noisy(TwoLayers):
    def forward(self, x):
        return super().forward(x + torch.randn(3, 6, dtype=x.dtype))


@pytest.mark.filterwarnings("ignore:operations without a rule")
def test_a_forward_that_is_random():
    refuses("the same output twice in evaluation mode", "another one", Noisy())


def test_outputs():
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                                 vocab_size=100))  # fmt: skip
    inputs = ARCHITECTURES["bert"].inputs(0)
    refuses("a model without a head must be told", "['last_hidden_state', 'pooler_output']", model, inputs)
    refuses("outputs must name fields", "'logits'", model, inputs, outputs=["logits"])
    spec = discover(model, inputs, outputs=["pooler_output"])
    assert spec.groups["embeddings.word_embeddings.weight[1]"].frozen is None
    spec = discover(model, inputs, outputs=["last_hidden_state"], strict=False)
    assert "the output last_hidden_state" in spec.explain("embeddings.word_embeddings.weight")


class Unruly(TwoLayers):
    """Has an operation without a rule."""

    def forward(self, x):
        return self.head(torch.linalg.matrix_exp(self.a(x).T @ self.a(x)).relu() + self.a(x).sum())


def test_an_operation_without_a_rule_freezes_what_it_touches():
    with pytest.warns(UserWarning, match="operations without a rule froze what they touch: {'linalg_matrix_exp': 1}"):
        spec = discover(Unruly(), (torch.randn(3, 6),))
    assert not spec.free and "no rule for the operation linalg_matrix_exp" in spec.explain("a.weight")


def test_a_rule_that_crashes_freezes_what_it_touches(monkeypatch):
    from hf_lottery.symmetry import trace

    def crash(*args, **kwargs):
        raise IndexError

    monkeypatch.setitem(trace.RULES, "relu", crash)
    with pytest.warns(UserWarning, match=r"relu \(IndexError\)"):
        spec = discover(TwoLayers(), (torch.randn(3, 6),))
    assert not spec.free


def test_no_warning_is_swallowed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        discover(copy.deepcopy(TwoLayers()), (torch.randn(3, 6),))
