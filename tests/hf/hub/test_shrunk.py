"""Small models are saved as any model where their class can express them, and load elsewhere as they are."""

import json

import pytest
import torch
import transformers as hf
from huggingface_hub import create_repo, upload_folder
from small_models import cut, logits, logits_elsewhere, model, saved

from hf_lottery import MaskFileError
from hf_lottery.hf.hub.shrunk import load_shrunk, save_shrunk

# The model, the groups that are cut, and the fields of its configuration that say so; None if none can.
CASES = {
    "BERT's units": ("BERT", "intermediate", {"intermediate_size": 24}),
    "BERT's heads": ("BERT", None, None),
    "Llama's key-value heads and units": (
        "Llama", None, {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24},
    ),
    "ViT's units": ("ViT", "mlp", {"intermediate_size": 24}),
    "ViT's heads": ("ViT", None, None),
    "ResNet's first channels": ("ResNet", "embedder", {"embedding_size": 4}),
    "LeNet's units": ("LeNet", None, {"hidden_sizes": [10, 6]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_the_class_can_express_is_saved_as_any_model(tmp_path, case):
    name, groups, fields = CASES[case]
    small, inputs, plain = saved(name, tmp_path / "small", groups)
    before, stored = model(name).config.to_dict(), json.loads((tmp_path / "small/config.json").read_text())
    assert plain == (fields is not None)
    assert {key: stored[key] for key in before if key in stored and stored[key] != before[key]
            and key not in ("architectures", "dtype")} == (fields or {})  # fmt: skip
    loaded = type(small).from_pretrained(tmp_path / "small") if plain else load_shrunk(tmp_path / "small")
    assert type(loaded) is type(small) and not loaded.training
    assert torch.allclose(logits(loaded, inputs), logits(small, inputs), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "groups", "kind"),
    [
        ("BERT", "intermediate", "AutoModelForSequenceClassification"),
        ("BERT", None, "load_shrunk"),
        ("Llama", None, "AutoModelForCausalLM"),
        ("ViT", None, "load_shrunk"),
        ("ResNet", None, "load_shrunk"),
    ],
)
def test_another_process_loads_the_same_model(tmp_path, name, groups, kind):
    small, inputs, plain = saved(name, tmp_path / "small", groups)
    assert plain == (kind != "load_shrunk")
    found = logits_elsewhere(kind, tmp_path / "small", inputs, tmp_path / "place")
    assert torch.allclose(found, logits(small, inputs), rtol=0, atol=1e-5)


def test_transformers_does_not_take_for_whole_what_its_class_cannot_express(tmp_path):
    saved("BERT", tmp_path / "small")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")


def test_layers_of_different_widths_and_heads_load(tmp_path):
    small, inputs, plain = saved("Llama", tmp_path / "small", scope=_first_layer_more)
    assert not plain
    widths = [layer.mlp.gate_proj.out_features for layer in small.model.layers]
    assert widths[0] != widths[1]
    loaded = load_shrunk(tmp_path / "small")
    assert [layer.mlp.gate_proj.out_features for layer in loaded.model.layers] == widths
    assert torch.allclose(logits(loaded, inputs), logits(small, inputs), rtol=0, atol=1e-6)
    assert loaded.generation_config.eos_token_id == small.generation_config.eos_token_id
    tokens = loaded.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False)
    assert torch.equal(tokens, small.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False))


def _first_layer_more(request):
    """Cut three quarters of the units of the first layer, a quarter of those of the second, and no heads."""
    keep = {}
    for name, scores in request.scores.items():
        share = 0 if "attn" in name else 3 if "layers.0" in name else 1
        order = scores[:, 0].argsort()
        keep[name] = torch.ones(scores.shape, dtype=torch.bool)
        keep[name][order[: len(order) * share // 4]] = False
    return keep


def test_it_loads_from_the_hub(tmp_path, hub):
    small, inputs, _ = saved("BERT", tmp_path / "small")
    repo_id = create_repo("small").repo_id
    upload_folder(repo_id=repo_id, folder_path=tmp_path / "small")
    assert torch.equal(logits(load_shrunk(repo_id), inputs), logits(small, inputs))


def test_saving_changes_neither_model(tmp_path):
    large = model("BERT")
    before = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    found, rest = cut(large)
    shown = found.model.config.to_dict()
    save_shrunk(found, tmp_path, large=rest["large"])
    assert found.model.config.to_dict() == shown and large.config.to_dict() == model("BERT").config.to_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in large.state_dict().items())


def test_tokenizer_files_go_along(tmp_path):
    found, rest = cut(model("BERT"))
    save_shrunk(found, tmp_path, large=rest["large"], processing={"tokenizer_config.json": b"{}"})
    assert (tmp_path / "tokenizer_config.json").read_bytes() == b"{}"


def test_a_class_that_transformers_does_not_know_is_refused(tmp_path):
    saved("BERT", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForFun"]}))
    with pytest.raises(ValueError, match="must be one that transformers knows for a BertConfig; received 'BertForFun'"):
        load_shrunk(tmp_path)


def test_damage_and_absence_are_said(tmp_path):
    saved("BERT", tmp_path)
    weights = tmp_path / "shrunk.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(MaskFileError):
        load_shrunk(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        load_shrunk(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_shrunk(tmp_path / "nowhere")
