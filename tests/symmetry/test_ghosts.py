"""Models on the meta device: traced without weights, with the groups that they have with weights."""

import copy
import time
from pathlib import Path

import pytest
import torch
import transformers as hf
from accelerate import cpu_offload, init_empty_weights
from architectures import ARCHITECTURES, ids
from architectures import TwoLayers as Plain
from torch import nn

from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.errors import SymmetryError
from hf_lottery.symmetry.spec import PermutationSpec

NEEDS_NUMBERS = {"data-dependent-branch"}
ROWS = [
    pytest.param(name, marks=[pytest.mark.slow] if row.slow else [])
    for name, row in ARCHITECTURES.items()
    if name not in NEEDS_NUMBERS
]
X = (torch.randn(3, 6),)


def on_meta(build) -> nn.Module:
    with torch.device("meta"):
        return build()


def later(model, inputs=X, **options) -> PermutationSpec:
    return discover(model, inputs, proof="later", **options)


def content(spec: PermutationSpec):
    """Everything but the reasons why something is frozen, which name what froze it first."""
    groups = {name: (group.size, group.parents, group.frozen is None) for name, group in spec.groups.items()}
    return groups, spec.tensors, spec.network


@pytest.mark.parametrize("name", ROWS)
def test_the_spec_is_that_of_the_loaded_model(name):
    row = ARCHITECTURES[name]
    torch.manual_seed(0)
    loaded, inputs = row.build(), row.inputs(0)
    spec, model = later(loaded, inputs), on_meta(row.build)
    before = {key: tensor for key, tensor in (*model.named_parameters(), *model.named_buffers())}
    assert content(later(model, inputs)) == content(spec)
    after = dict((*model.named_parameters(), *model.named_buffers()))
    assert after.keys() == before.keys() and all(after[key] is before[key] for key in before)
    # Integers on the meta device count as ones. Some weights may be there, and some inputs.
    half = copy.deepcopy(loaded)
    for module in [*half.modules()][::2]:
        for key, parameter in module.named_parameters(recurse=False):
            setattr(module, key, nn.Parameter(parameter.to("meta")))
    getattr(half, "tie_weights", lambda: None)()
    assert content(later(half, inputs)) == content(spec)
    assert content(later(model, {key: value.to("meta") for key, value in inputs.items()})) == content(spec)


SIZES = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig()),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig()),
    "bert-large": lambda: hf.BertForMaskedLM(
        hf.BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    ),
}


def peak() -> int:
    """The most memory that this process ever used, in bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read where Linux says it")
@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_real_sizes_cost_no_memory(name):
    model = on_meta(SIZES[name])
    assert sum(parameter.numel() for parameter in model.parameters()) > 3e8
    before, begin = peak(), time.process_time()
    spec = later(model, {"input_ids": ids(2, 32), "attention_mask": torch.ones(2, 32, dtype=torch.long)})
    assert peak() - before < 5e8 and time.process_time() - begin < 60
    assert spec.coverage()[0] > 0.99 and spec.proof == "later"


WORDS = [name for name, row in ARCHITECTURES.items() if "input_ids" in row.inputs(0)]


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_without_a_cache_the_length_costs_nothing(name):
    row = ARCHITECTURES[name]
    model, found, costs = row.build(), [], {}
    most = min(getattr(model.config, key, None) or 132 for key in ("max_position_embeddings", "n_positions")) - 4
    for cache, length in 2 * ((True, 16), (False, 16), (False, min(most, 128))):
        inputs = {"input_ids": ids(2, length), "use_cache": cache}
        if "decoder_input_ids" in row.inputs(0):
            inputs["decoder_input_ids"] = ids(2, length)
        begin = time.process_time()
        found.append(content(later(model, inputs)))
        costs.setdefault((cache, length), []).append(time.process_time() - begin)
    assert all(one == found[0] for one in found)
    short, *_, long = [min(times) for times in costs.values()]
    assert long < 3 * short + 0.2, costs


def test_a_spec_without_weights_serves_the_loaded_model(tmp_path):
    row = ARCHITECTURES["llama"]
    spec = later(on_meta(row.build), row.inputs(0))
    spec.save(tmp_path / "spec.json")
    spec, model = PermutationSpec.load(tmp_path / "spec.json"), row.build()
    assert spec.proof == "later" and spec.verify(model, row.inputs(1)).error < 1e-8 and spec.proof == "full"


def refused(message: str, model: nn.Module, inputs=X, **options) -> None:
    before = dict(model.named_parameters())
    with pytest.raises(SymmetryError, match=message):
        later(model, inputs, **options)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


class Reads(Plain):
    """Does something with numbers that depend on the weights."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        x = self.a(x).relu()
        return self.head(x if self.what(x) is None else x + 1)


@pytest.mark.parametrize(
    ("what", "operation"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: None if x.mean() > 0 else 1, "_local_scalar_dense"),
        (lambda x: (x > 0).nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.sum(0).tolist(), "tolist"),
        (lambda x: x.detach().numpy(), "numpy"),
        (lambda x: torch.zeros(3, 8).add_(x).max().item(), "_local_scalar_dense"),
        (lambda x: torch.zeros(4).index_add_(0, torch.tensor([1]), x[:1, 0])[1:].sum().item(), "_local_scalar_dense"),
    ],
)
def test_what_depends_on_numbers_is_refused(what, operation):
    refused(
        f"must not depend on its numbers; received .*{operation}.*Load the weights, or", on_meta(lambda: Reads(what))
    )


class Tokens(Plain):
    """Does something with the numbers of its inputs, of positions and of masks alone."""

    def forward(self, x):
        rows = (x[:, 0] > 0).nonzero()[:, 0]
        out = torch.zeros(len(x), 8, device=self.a.weight.device)
        out[rows] = self.a(x)[rows].relu()
        mask = torch.arange(len(x), device=x.device)[:, None] <= torch.arange(8, device=out.device)
        assert mask.any() and out.device == x.device == self.a.weight.device
        return self.head(out[:, [-1]] * self.a(x).t_().t_().masked_fill(mask, 1.0))


def test_numbers_that_are_there_are_used():
    model = Tokens()
    assert content(later(on_meta(Tokens))) == content(later(model))
    with torch.device("meta"):
        assert content(later(Tokens(), X)) == content(later(model))


class Buffers(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(8), persistent=False)

    def forward(self, x):
        return self.head(self.a(x).relu() * self.scale)


def test_buffers_of_which_nothing_is_known_stay_in_order():
    # With numbers, it is known to be the same everywhere.
    assert list(later(Buffers()).free) == ["a.weight[0]"]
    spec = later(on_meta(Buffers))
    assert not spec.free and spec.groups["a.weight[0]"].frozen == "a buffer on the meta device"


def test_tied_weights():
    row = ARCHITECTURES["llama-tied"]
    spec = later(row.build(), row.inputs(0))
    with init_empty_weights():
        model = row.build()
        inside = later(model, row.inputs(0))
    assert model.lm_head.weight.is_meta and content(later(model, row.inputs(0))) == content(inside) == content(spec)


def test_offloaded_weights_are_refused():
    row = ARCHITECTURES["llama"]
    model = row.build()
    cpu_offload(model)
    assert model.lm_head.weight.is_meta
    refused("must stay there during a pass; received a tensor made for.*Build the", model, row.inputs(0), strict=False)

    def load(module, inputs):
        module.weight = nn.Parameter(torch.ones(5, 8))

    model = on_meta(Plain)
    model.get_submodule("head").register_forward_pre_hook(load)
    refused("received another tensor in the place of 'head.weight'.*Build the same model", model, strict=False)


class Half(Plain):
    def __init__(self):
        super().__init__()
        self.head.weight = nn.Parameter(self.head.weight.to(torch.int8), requires_grad=False)


def test_other_refusals_stay():
    refused("parameters must be plain floating tensors", on_meta(Half))
    refused("the model must run on the inputs; received .*RuntimeError", on_meta(Plain), (torch.randn(3, 5),))
    for inputs, model in ((X, on_meta(Plain)), ((X[0].to("meta"),), Plain())):
        with pytest.raises(SymmetryError, match=r"must be loaded to prove the spec.*or pass proof=\"later\""):
            discover(model, inputs)
    with pytest.raises(ValueError, match="proof must be one of .*'later'.*; received 'never'"):
        discover(Plain(), X, proof="never")


def test_vectors_that_only_training_reads():
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=4)
    model, inputs = hf.Dinov2ForImageClassification(hf.Dinov2Config(**sizes)), ARCHITECTURES["vit"].inputs(0)
    empty = on_meta(lambda: type(model)(model.config))
    options = dict(strict=False)  # the mask token takes no part in evaluation
    assert content(later(empty, inputs, **options)) == content(later(model, inputs, **options))
