"""Signed masks: what they hold, what a fresh network takes over, and the file."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sealed_files import sealed
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_lottery import Mask, MaskFileError, MaskMismatchError, SignedMask, norm_parameters


class Net(nn.Module):
    """A tied pair, a bias that starts at zero, a norm and a head."""

    def __init__(self, classes=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.embed.weight
        self.hidden = nn.Linear(4, 5)
        nn.init.zeros_(self.hidden.bias)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, classes)


def ticket(seed=1):
    """A trained network and a mask of two of its parameters."""
    model = Net(seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model.hidden.weight[0, 0] = 0.0  # a kept weight without a sign
    generator = torch.Generator().manual_seed(seed)
    entries = {
        name: torch.rand(dict(model.named_parameters())[name].shape, generator=generator) < 0.6
        for name in ("embed.weight", "hidden.weight")
    }
    entries["hidden.weight"][0, 0] = True
    return model, Mask(entries)


def signed(seed=1):
    return SignedMask.from_model(*ticket(seed))


def test_signs_of_a_model():
    model, mask = ticket()
    found = SignedMask.from_model(model, mask)
    assert list(found) == ["embed.weight", "hidden.weight", "hidden.bias", "head.weight", "head.bias"]
    for name, sign in found.items():
        weight = model.get_parameter(name).detach()
        expected = weight.sign() * (mask.get(name, 1))
        assert torch.equal(sign, expected.to(torch.int8))
        assert found.medians[name] == np.median(weight[expected != 0].abs().double().numpy())
    assert found.mask == mask


def test_a_fresh_network_takes_over_mask_and_signs():
    found, model = signed(), Net(seed=7)
    with torch.no_grad():
        model.norm.weight.fill_(1.25)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    report = found.transfer_(model)
    for name, parameter in model.named_parameters():
        if name in norm_parameters(model):
            assert torch.equal(parameter, before[name])
            continue
        kept = found.mask[name] if name in found.mask else torch.ones_like(parameter, dtype=torch.bool)
        assert torch.equal(parameter[kept].sign(), found[name][kept] * before[name][kept].abs().sign())
        assert torch.equal(parameter[kept].abs(), before[name][kept].abs() * found[name][kept].abs())
        assert not parameter[~kept].any()
    assert report == (tuple(found), ("hidden.bias",), (), ())
    assert model.tied.weight is model.embed.weight


def test_a_kept_weight_of_sign_0_stays_in_the_mask():
    found, model = signed(), Net(seed=7)
    found.transfer_(model)
    assert found["hidden.weight"][0, 0] == 0
    assert found.mask["hidden.weight"][0, 0]
    assert model.hidden.weight[0, 0] == 0


def test_transformers_at_full_size_of_a_small_one():
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_channels=1,
    )
    source, model = ViTForImageClassification(config), ViTForImageClassification(config)
    found = SignedMask.from_model(source, Mask.dense({"classifier.weight": source.classifier.weight}))
    covered = found.keys() | norm_parameters(source).keys()
    assert covered == dict(source.named_parameters()).keys()  # biases, tokens, positions and head too
    assert "vit.embeddings.position_embeddings" in found
    size = model.vit.embeddings.patch_embeddings.projection.weight.detach().abs()
    report = found.transfer_(model)
    assert torch.equal(model.vit.embeddings.patch_embeddings.projection.weight.abs(), size)
    assert all(name.endswith("bias") for name in report.zero)
    assert found.agreement(model).overall == 1


@pytest.mark.parametrize(("zeros", "magnitude"), [("std", None), ("source_median", None)])
@pytest.mark.parametrize("magnitudes", ["init", "constant", "network"])
def test_what_starts_at_zero(zeros, magnitude, magnitudes):
    found, model, other = signed(), Net(seed=7), Net(seed=9)
    spread = model.hidden.weight.detach().std(correction=0)
    given = other if magnitudes == "network" else magnitudes
    report = found.transfer_(model, zeros=zeros, magnitudes=given)
    wanted = spread if zeros == "std" else torch.tensor(found.medians["hidden.bias"])
    torch.testing.assert_close(model.hidden.bias.detach(), found["hidden.bias"] * wanted)
    assert report.zero == ("hidden.bias",)
    kept = found["hidden.weight"] != 0
    sizes = {"init": Net(seed=7).hidden.weight, "network": other.hidden.weight, "constant": spread.expand(5, 4)}
    torch.testing.assert_close(model.hidden.weight.abs()[kept], sizes[magnitudes].abs()[kept])


def test_a_parameter_that_is_alone_takes_the_spread_of_the_model():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(2))
            self.linear = nn.Linear(2, 2, bias=False)

    model = Scaled()
    found = SignedMask(
        Mask.dense({"linear.weight": model.linear.weight}),
        {"scale": torch.tensor([1, -1], dtype=torch.int8), "linear.weight": torch.ones(2, 2, dtype=torch.int8)},
    )
    spread = model.linear.weight.detach().std(correction=0).item()
    found.transfer_(model, zeros="std")
    assert model.scale.tolist() == pytest.approx([spread, -spread])


def test_another_head_is_skipped_and_reported():
    found, model = signed(), Net(classes=4, seed=7)
    head = model.head.weight.detach().clone()
    with pytest.warns(
        UserWarning, match=r"2 parameters got no sign, as the model has no parameter of that name and shape: head"
    ):
        report = found.transfer_(model)
    assert report.skipped == ("head.weight", "head.bias")
    assert report.unsigned == ("head.weight", "head.bias")
    assert torch.equal(model.head.weight, head)


def test_a_signed_mask_of_another_model_changes_nothing():
    model = nn.Linear(3, 3)
    before = model.weight.detach().clone()
    with pytest.raises(MaskMismatchError, match="mask entry 'embed.weight' must name a parameter"):
        signed().transfer_(model)
    with pytest.raises(
        MaskMismatchError, match=r"the magnitudes of 'hidden.weight' must have shape \[5, 4\]; received"
    ):
        signed().transfer_(Net(), magnitudes={"embed.weight": torch.ones(4, 4)})
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zeros": "drop"}, "zeros must be one of keep, std, source_median; received 'drop'"),
        ({"magnitudes": "xavier"}, "magnitudes must be 'init', 'constant' or a network; received 'xavier'"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=message):
        signed().transfer_(Net(), **options)


def test_medians_and_spreads_that_are_not_there():
    bare = SignedMask(signed().mask, dict(signed()))
    with pytest.raises(ValueError, match="needs the medians; received none"):
        bare.transfer_(Net(), zeros="source_median")
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.raises(ValueError, match="needs parameters that vary"):
        signed().transfer_(model, zeros="std")


@pytest.mark.parametrize(
    ("sign", "error", "message"),
    [
        (torch.tensor([1.0, 0.0]), TypeError, "must be an int8 tensor; received torch.float32"),
        (torch.tensor([2, 0], dtype=torch.int8), ValueError, "must be -1, 0 or \\+1; received 2"),
        (torch.tensor([-128, 0], dtype=torch.int8), ValueError, "must be -1, 0 or \\+1; received -128"),
        (
            torch.tensor([1, 1], dtype=torch.int8),
            MaskMismatchError,
            "pruned weight must have sign 0; received 1 others",
        ),
        (torch.tensor([1], dtype=torch.int8), MaskMismatchError, r"the mask's shape \[2\]; received \[1\]"),
    ],
)
def test_signs_that_disagree_with_the_mask(sign, error, message):
    with pytest.raises(error, match=message):
        SignedMask(Mask({"a": torch.tensor([True, False])}), {"a": sign})


def test_a_mask_without_signs():
    with pytest.raises(MaskMismatchError, match=r"the mask's shape \[1\]; received none"):
        SignedMask(Mask({"a": torch.tensor([True])}), {})


def test_networks_without_signs_to_take():
    model, mask = ticket()
    with pytest.raises(MaskMismatchError, match=r"must not cover norms, .*; received 'norm.weight'"):
        SignedMask.from_model(model, Mask({**mask, "norm.weight": torch.ones(5, dtype=torch.bool)}))
    with pytest.raises(MaskMismatchError, match="received 'tied.weight'"):
        SignedMask.from_model(model, Mask({"tied.weight": mask["embed.weight"]}))
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match="'head.bias' must have finite weights; received NaN or infinite"):
        SignedMask.from_model(model, mask)


def test_agreement_counts_kept_signs():
    model = nn.Linear(4, 1, bias=False)
    found = SignedMask(
        Mask({"weight": torch.tensor([[True, True, True, False]])}),
        {"weight": torch.tensor([[1, -1, 0, 0]], dtype=torch.int8)},
    )
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 3.0, 4.0, 5.0]]))
    assert found.agreement(model) == (0.5, {"weight": 0.5})
    assert found.agreement(found) == (1.0, {"weight": 1.0})
    with pytest.raises(MaskMismatchError):
        found.agreement(nn.Linear(3, 1))


def test_controls_keep_what_they_promise():
    found = signed()
    shuffled, drawn = found.shuffled(3), found.randomized(3)
    for control in (shuffled, drawn):
        assert control.mask == found.mask
        assert control.agreement(found).overall < 0.9
        assert all(torch.equal(control[name] != 0, found[name] != 0) for name in found)
    assert all(shuffled[name].sum() == found[name].sum() for name in found)
    assert any(drawn[name].sum() != found[name].sum() for name in found)
    assert found.shuffled(3) == shuffled
    assert found.randomized(4) != drawn


def test_the_file_gives_back_the_same(tmp_path):
    found = signed()
    found.save_pretrained(tmp_path / "s")
    loaded = SignedMask.from_pretrained(tmp_path / "s")
    assert loaded == found
    assert loaded.medians == found.medians
    assert list(loaded) == list(found)
    assert Mask.from_pretrained(tmp_path / "s") == found.mask
    stored = load_file(tmp_path / "s" / "mask.safetensors")
    assert len(stored["hidden.weight.sign"]) == -(-int(found.mask["hidden.weight"].sum()) // 8)
    assert [name for name in stored if name.endswith("zero")] == ["hidden.weight.zero"]


def test_a_mask_without_signs_is_no_signed_mask(tmp_path):
    signed().mask.save_pretrained(tmp_path)
    with pytest.raises(MaskFileError, match="must hold signs; received a mask without signs. Load it as a Mask"):
        SignedMask.from_pretrained(tmp_path)


def rewrite(folder, change):
    """Change the tensors or the config of a saved signed mask, with a right checksum."""
    import hashlib

    config, tensors = json.loads((folder / "mask_config.json").read_text()), load_file(folder / "mask.safetensors")
    change(config, tensors)
    save_file(tensors, folder / "mask.safetensors")
    config["sha256"] = hashlib.sha256((folder / "mask.safetensors").read_bytes()).hexdigest()
    (folder / "mask_config.json").write_bytes(sealed(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, _: c.pop("signs"), "signs must name every parameter of tensors; received None"),
        (lambda c, _: c["signs"].pop("hidden.weight"), "signs must name every parameter of tensors"),
        (lambda c, _: c["signs"]["head.bias"].update(shape=[-1]), "shape of 'head.bias' must be a list of sizes"),
        (lambda c, _: c["signs"]["head.bias"].update(negative=9), "negative of 'head.bias' must be a count"),
        (lambda c, _: c["signs"]["head.bias"].update(zeros="0"), "zeros of 'head.bias' must be a count"),
        (lambda c, _: c["signs"]["head.bias"].update(median=float("inf")), "median of 'head.bias' must be a magnitude"),
        (lambda c, _: c["signs"]["head.bias"].update(median="1"), "median of 'head.bias' must be a magnitude"),
        (lambda c, _: c["signs"]["hidden.weight"].update(shape=[4, 5]), "'hidden.weight' must have one shape"),
        (lambda c, _: c["signs"].update({"x": c["signs"]["head.bias"]}), r"missing \['x.sign'\]"),
        (lambda _, t: t.pop("hidden.weight.zero"), r"missing \['hidden.weight.zero'\]"),
        (
            lambda _, t: t.update({"head.bias.zero": t["head.bias.sign"].clone()}),
            r"received extra \['head.bias.zero'\]",
        ),
        (lambda _, t: t["head.bias.sign"].bitwise_xor_(1), "must have . negative and 0 zero signs"),
        (lambda _, t: t["head.bias.sign"].bitwise_or_(128), "padding bits of 'head.bias.sign' must be zero"),
        (lambda _, t: t.update({"head.bias.sign": t["head.bias.sign"].repeat(2)}), r"must be uint8 \[1\] for 3 bits"),
        (lambda c, _: c["signs"]["head.bias"].update(shape=[2**60]), "must be uint8"),
        (lambda c, _: c.update(mask_type="binary"), "must hold exactly the tensors"),
    ],
)
def test_damaged_signs(tmp_path, change, message):
    signed().save_pretrained(tmp_path / "s")
    shutil.copytree(tmp_path / "s", tmp_path / "t")
    rewrite(tmp_path / "t", lambda *_: None)
    assert SignedMask.from_pretrained(tmp_path / "t") == signed()
    rewrite(tmp_path / "t", change)
    with pytest.raises(MaskFileError, match=message):
        SignedMask.from_pretrained(tmp_path / "t")


def test_a_weight_cannot_be_both_negative_and_zero(tmp_path):
    signed().save_pretrained(tmp_path)
    zero = int(load_file(tmp_path / "mask.safetensors")["hidden.weight.zero"][0])
    before = json.loads((tmp_path / "mask_config.json").read_text())["signs"]["hidden.weight"]["negative"]

    def change(config, tensors):
        tensors["hidden.weight.sign"][0] |= zero
        config["signs"]["hidden.weight"]["negative"] = before + 1

    rewrite(tmp_path, change)
    with pytest.raises(MaskFileError, match="no weight both"):
        SignedMask.from_pretrained(tmp_path)


def test_repr():
    assert repr(signed()).startswith("SignedMask(5 parameters, ")


def test_a_constant_parameter_keeps_its_magnitude():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((2,), 1e-5))
            self.temperature = nn.Parameter(torch.tensor(2.5))
            self.linear = nn.Linear(2, 2)

    model = Scaled()
    found = SignedMask.from_model(model, Mask.dense({"linear.weight": model.linear.weight}))
    report = found.transfer_(model, magnitudes="constant")
    assert model.scale.tolist() == pytest.approx([1e-5, 1e-5])
    assert model.temperature.item() == 2.5
    assert not report.zero


def test_infinite_magnitudes_leave_no_nan():
    model = Net(seed=7)
    with torch.no_grad():
        model.hidden.weight.fill_(float("inf"))
    signed().transfer_(model)
    assert not model.hidden.weight.isnan().any()
    with pytest.raises(ValueError, match="'hidden.weight' must have finite weights; received NaN or infinite"):
        SignedMask.from_model(model, ticket()[1])


def test_what_has_signs_of_its_own_must_not_be_tied():
    class Untied(Net):
        def __init__(self, seed):
            super().__init__(seed=seed)
            self.tied.weight = nn.Parameter(torch.randn(4, 4))

    source = Untied(1)
    found = SignedMask.from_model(source, Mask.dense({"embed.weight": source.embed.weight}))
    with pytest.raises(MaskMismatchError, match="two names with signs must be two parameters; received 'embed.weight'"):
        found.transfer_(Net())


@pytest.mark.parametrize("median", [-1.0, float("nan"), float("inf")])
def test_medians_are_magnitudes(median):
    with pytest.raises(ValueError, match="median of 'head.bias' must be a finite magnitude"):
        SignedMask(signed().mask, dict(signed()), medians={"head.bias": median})
    assert SignedMask(signed().mask, dict(signed()), medians={"head.bias": 1}).medians == {"head.bias": 1.0}


def test_equality_is_of_mask_names_and_signs():
    found = signed()
    denser = Mask({**found.mask, "head.weight": torch.ones(3, 5, dtype=torch.bool)})
    assert SignedMask(denser, dict(found)) != found
    fewer = {name: sign for name, sign in found.items() if name != "head.bias"}
    assert SignedMask(found.mask, fewer) != found


def test_signs_are_copied_and_controls_keep_the_medians():
    signs = dict(signed())
    found = SignedMask(signed().mask, signs, medians=signed().medians)
    signs["head.bias"].fill_(1)
    assert found == signed()
    assert found.shuffled(1).medians == found.randomized(1).medians == found.medians


def test_norms_of_ones_own():
    model, mask = ticket()
    assert "norm.weight" in SignedMask.from_model(model, mask, norms={})
