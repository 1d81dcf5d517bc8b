"""shrink: cut and proven, or kept whole with the reason; the large network stays as it was."""

import copy

import pytest
import torch
from architectures import ARCHITECTURES
from torch import nn
from torch.nn import functional as F

from hf_lottery import Mask, discover
from hf_lottery.structured import UnitError, UnitMask, shrink, shrinking, shrunk
from hf_lottery.symmetry import SpecMismatchError, SymmetryError
from hf_lottery.symmetry.spec import PermutationSpec


def half(spec, groups=None, seed=0):
    """Keep half of the units of every free group, others in every row."""
    generator, units = torch.Generator().manual_seed(seed), {}
    for name in spec.free if groups is None else groups:
        *outer, size = spec.entry_shape(name)
        if size > 1:
            units[name] = torch.rand(*outer, size, generator=generator).argsort(-1) >= size // 2
    return units


def built(name):
    torch.manual_seed(0)
    row = ARCHITECTURES[name]
    model = row.build().eval()
    return model, discover(model, row.inputs(0)), row.inputs(1)


def outputs(model, inputs):
    with torch.no_grad():
        found = model(**inputs)
    return found if isinstance(found, torch.Tensor) else found["logits"]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).tanh())


def two():
    torch.manual_seed(0)
    model = Two()
    return model, discover(model, (torch.randn(4, 6),))


def test_a_small_network_computes_what_the_large_one_does_without_what_cut_units_send():
    model, spec = two()
    before = copy.deepcopy(model)
    units = half(spec)
    found = shrunk(model, spec, units)
    first, second = (units[name] for name in ("a.weight[0]", "b.weight[0]"))
    quiet = copy.deepcopy(model)
    with torch.no_grad():
        quiet.b.weight[:, ~first] = 0
        quiet.head.weight[:, ~second] = 0
    x = torch.randn(7, 6)
    assert (found.model(x) - quiet(x)).abs().max() < 1e-6
    assert torch.equal(found.model.b.weight, model.b.weight[second][:, first])
    assert (found.model.b.in_features, found.model.b.out_features) == (4, 5)
    assert found.error[0] <= 1e-10 and found.error[1] <= 1e-5 and not found.refused
    assert found.parameters == (sum(p.numel() for p in model.parameters()), 4 * 7 + 5 * 5 + 3 * 6)
    assert found.shapes["b.weight"] == ((10, 8), (5, 4))
    assert str(model) == str(before)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


def test_it_trains():
    model, spec = two()
    small = shrink(model, spec, half(spec))
    small(torch.randn(2, 6)).sum().backward()
    assert small.b.weight.grad.shape == (5, 4) and model.b.weight.grad is None


@pytest.mark.parametrize("kind", [dict, UnitMask])
def test_units_come_as_a_mapping_or_as_a_mask_of_units(kind):
    model, spec = two()
    units = half(spec)
    small = shrink(model, spec, units if kind is dict else UnitMask(units, spec))
    assert small.a.weight.shape == (4, 6)


def test_a_plain_mask_gives_up_the_units_that_it_leaves_dead():
    model, spec = two()
    kept = {name: torch.rand(p.shape) > 0.05 for name, p in model.named_parameters() if p.ndim > 1}
    kept["b.weight"][:, 2:5] = False  # what these units send
    kept["b.weight"][7] = False  # what this one receives: it sends the constant of its bias
    small = shrink(model, spec, Mask(kept))
    assert small.b.weight.shape == (9, 5)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, keep in kept.items():
            masked.get_parameter(name).mul_(keep)
    x = torch.randn(5, 6)
    assert (small(x) - masked(x)).abs().max() < 1e-6


def test_the_stream_is_kept_with_a_reason_unless_it_is_to_be_retrained():
    model, spec, inputs = built("vit")
    stream = "vit.embeddings.cls_token[2]"
    found = shrunk(model, spec, half(spec))
    assert [*found.refused] == [stream]
    assert "LayerNorm 'vit" in found.refused[stream] and "reads all of its units at once" in repr(found)
    small = shrunk(model, spec, half(spec), retrain="cls_token")
    assert not small.refused and not next(row for row in small.report if row.name == stream).proven
    assert small.model.classifier.weight.shape == (2, 16)
    assert outputs(small.model, inputs).shape == outputs(model, inputs).shape


class Gqa(nn.Module):
    """Grouped queries with sizes in attributes and in an object that two layers share."""

    class Config:
        def __init__(self):
            self.heads, self.shared, self.layers = 4, 2, 2

    def __init__(self, config=None):
        super().__init__()
        self.config = config = self.Config()
        self.embed, self.head = nn.Linear(6, 32), nn.Linear(32, 5)
        self.layers = nn.ModuleList(GqaLayer(config) for _ in range(2))

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


class GqaLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.q, self.k, self.v, self.o = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(32, 32)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.config.heads, 8).transpose(1, 2)
        k, v = (part(x).view(b, n, self.config.shared, 8).transpose(1, 2) for part in (self.k, self.v))
        k, v = (part.repeat_interleave(self.config.heads // self.config.shared, 1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return self.o(mixed)


def test_sizes_in_an_object_that_layers_share_are_set_for_one_layer_alone():
    torch.manual_seed(0)
    model = Gqa()
    spec = discover(model, (torch.randn(2, 7, 6),))
    first = next(name for name in spec.free if name.startswith("layers.0.q") and not spec.groups[name].parents)
    found = shrunk(model, spec, {first: torch.tensor([True, False])})
    assert not found.refused
    small = found.model
    assert (small.layers[0].config.heads, small.layers[0].config.shared) == (2, 1)
    assert (small.layers[1].config.heads, small.config.heads, model.config.heads) == (4, 4, 4)
    assert small.layers[0].config.layers == 2  # a number that is a size by chance stays where the rest suffices


class Windowed(nn.Module):
    """A length that is as large as the inner layer, and a size that the network never reads."""

    def __init__(self):
        super().__init__()
        self.context_size = self.inner_size = 16
        self.embed, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, ids):
        x = self.embed(ids[:, -self.context_size :])
        return (x + self.down(self.up(x).relu())).cumsum(1)


def test_a_length_that_is_as_large_as_what_is_cut_stays():
    torch.manual_seed(0)
    model = Windowed()
    spec = discover(model, (torch.randint(0, 20, (2, 4)),))
    small = shrink(model, spec, half(spec, ["up.weight[0]"]))
    assert (small.context_size, small.inner_size) == (16, 8)
    assert small(torch.randint(0, 20, (2, 12))).shape == (2, 12, 8)  # no proof ran on as many


def test_a_size_that_no_pass_reads_stays_where_it_is_one_of_what_is_left():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16))
    layer.hidden_size = 16
    spec = discover(layer, (torch.randn(3, 6),))
    assert shrink(layer, spec, half(spec, ["0.weight[0]"])).hidden_size == 16


def test_the_number_of_queries_of_a_head_stays_when_heads_go():
    model, spec, _ = built("llama")
    heads = [name for name in spec.free if "self_attn.q_proj" in name and not spec.groups[name].parents]
    small = shrink(model, spec, half(spec, heads))
    before, after = (one.model.layers[0].self_attn for one in (model, small))
    assert after.k_proj.out_features == before.k_proj.out_features // 2
    assert after.num_key_value_groups == before.num_key_value_groups == 2


def test_what_a_view_hard_codes_is_kept_whole():
    model, spec, _ = built("timm-qkv")
    found = shrunk(model, spec, half(spec))
    assert "the model does not run with less: RuntimeError" in found.refused["qkv.weight[0]"]
    assert next(row for row in found.report if row.name == "up.weight[0]").kept == 24


def test_the_scale_of_attention_stays_when_dimensions_go():
    """The dimensions of queries and keys share one attribute with those of values: they can be cut together alone."""
    model, spec, inputs = built("bert")
    before = copy.deepcopy(model.state_dict())
    found = shrunk(model, spec, half(spec))
    assert [*found.refused] == ["bert.embeddings.word_embeddings.weight[1]"]
    attention = found.model.bert.encoder.layer[0].attention.self
    assert (attention.num_attention_heads, attention.attention_head_size, attention.all_head_size) == (2, 4, 8)
    assert attention.scaling == 8**-0.5
    assert model.config.num_attention_heads == 4 and outputs(found.model, inputs).isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tied_weights_stay_tied_and_buffers_are_cut():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[5].weight = model[3].weight
    spec = discover(model.eval(), (torch.randn(4, 6),))
    small = shrunk(model, spec, half(spec, ["0.weight[0]"]) if "0.weight[0]" in spec.free else half(spec))
    assert small.model[5].weight is small.model[3].weight
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    spec = discover(model, (torch.randn(2, 3, 8, 8),))
    units = half(spec, ["0.weight[0]"])
    small = shrink(model, spec, units)
    assert torch.equal(small[1].running_var, model[1].running_var[units["0.weight[0]"]])
    assert small[1].num_features == 4


def test_bad_units_are_one_error_and_change_nothing():
    model, spec = two()
    other_spec = built("vgg")[1]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SpecMismatchError, match="another model"):
        shrunk(model, other_spec, half(other_spec))
    with pytest.raises(SpecMismatchError, match="units must be of this spec"):
        shrunk(model, spec, UnitMask(half(other_spec), other_spec))
    with pytest.raises(UnitError, match="groups of the spec; received 'c'"):
        shrunk(model, spec, {"c": torch.ones(8, dtype=torch.bool)})
    with pytest.raises(UnitError, match="at least one unit"):
        shrunk(model, spec, {"a.weight[0]": torch.zeros(8, dtype=torch.bool)})
    with pytest.raises(TypeError, match="received list"):
        shrunk(model, spec, [True])
    with pytest.raises(SymmetryError, match="no group matches|must match|nothing"):
        shrunk(model, spec, half(spec), retrain="nothing")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_spec_from_a_file_needs_inputs(tmp_path):
    model, spec = two()
    spec.save(tmp_path / "spec.json")
    spec = PermutationSpec.load(tmp_path / "spec.json")
    with pytest.raises(SymmetryError, match="inputs must be given"):
        shrink(model, spec, half(spec))
    assert shrink(model, spec, half(spec), inputs=(torch.randn(3, 6),)).a.weight.shape == (4, 6)


def test_outputs_that_cancel_may_differ_as_much_as_by_another_rounding():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 1000), nn.ReLU(), nn.Linear(1000, 1)), torch.randn(1, 8)
    spec = discover(model, (x,))
    with torch.no_grad():
        kept = copy.deepcopy(model)
        kept[2].weight[0, ::2] = 0
        model[2].bias -= kept(x).squeeze()  # next to nothing is left of the sum
    small = shrink(model, spec, {"0.weight[0]": torch.arange(1000) % 2 == 1})
    assert small[2].in_features == 500


def test_what_is_off_by_more_than_rounding_is_refused(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    spec = discover(model, (torch.randn(3, 4),))
    kept = {"0.weight[0]": torch.arange(6) < 3}
    cut = shrinking._small

    def off(*args):
        small = cut(*args)
        with torch.no_grad():
            small[2].bias += 1e-4
        return small

    monkeypatch.setattr(shrinking, "_small", off)
    with pytest.raises(SymmetryError, match="more than another rounding makes"):
        shrink(model, spec, kept)


def test_what_runs_in_the_proof_alone_is_not_returned():
    class Aligned(Two):
        def forward(self, x):
            x = self.a(x).relu()
            if torch.backends.mha.get_fastpath_enabled() and x.shape[-1] % 4:  # a kernel that proofs do without
                raise RuntimeError("strides should be multiple of 16 bytes")
            return self.head(self.b(x).tanh())

    torch.manual_seed(0)
    model = Aligned()
    spec = discover(model, (torch.randn(4, 6),))
    with pytest.raises(SymmetryError, match="kernels that the model uses; received RuntimeError: strides"):
        shrink(model, spec, {"a.weight[0]": torch.arange(8) < 5})
    assert shrink(model, spec, {"a.weight[0]": torch.arange(8) < 4})(torch.randn(2, 6)).shape == (2, 3)


def test_arguments_of_the_wrong_kind_are_said():
    model, spec = two()
    for wrong in ((model, None), (model.state_dict(), spec)):
        with pytest.raises(TypeError, match="shrinking needs a torch module and its spec; received"):
            shrink(*wrong, half(spec))


def test_a_mask_without_dead_units_is_said_to_cut_nothing():
    model, spec = two()
    with pytest.warns(UserWarning, match="leaves no unit dead"):
        small = shrink(model, spec, Mask.dense(model))
    assert small.state_dict().keys() == model.state_dict().keys()
