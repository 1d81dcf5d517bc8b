import json

import pytest
import torch
from peft import LoraConfig, ShiraConfig, SupertuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_task import Points, arguments, net, vit
from torch.nn.utils import prune
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from hf_lottery import Mask, MaskMismatchError, SparseTrainer, prunable
from hf_lottery.hf.hub.checkpoint import mask_from_checkpoint

TEXT = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
WORDS = {"bos_token_id": 1, "eos_token_id": 2}
# PEFT asks transformers for a property that goes away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def bert():
    return BertForSequenceClassification(BertConfig(num_hidden_layers=1, **TEXT))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, **WORDS))


def llama():
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, num_key_value_heads=2, **TEXT))


def mixtral():
    return MixtralForCausalLM(MixtralConfig(num_hidden_layers=1, num_key_value_heads=2, num_local_experts=2, **TEXT))


def random_mask(model, **selection):
    return Mask({name: torch.rand(p.shape) > 0.5 for name, p in prunable(model, **selection).items()})


def sparse(model, **selection):
    mask = random_mask(model, **selection)
    mask.apply_(model)
    return mask


@pytest.mark.parametrize(
    ("build", "dtype", "shard"),
    [
        (bert, torch.float32, "5GB"),  # its embedding has a padding row of zeros, its task head is dense
        (bert, torch.float16, "2KB"),
        (gpt2, torch.float32, "5GB"),  # Conv1D, and a head tied to the embedding
        (llama, torch.bfloat16, "2KB"),
        (mixtral, torch.float32, "2KB"),  # saved one expert at a time, loaded stacked
        (lambda: vit(0), torch.float32, "5GB"),  # saved under the names of older versions
        (lambda: vit(0), torch.bfloat16, "2KB"),
    ],
)
def test_a_sparse_model_that_is_saved_and_loaded_has_its_mask(build, dtype, shard, tmp_path):
    model = build().to(dtype)
    mask = sparse(model)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "2KB")
    assert Mask.from_model(prunable(type(model).from_pretrained(tmp_path))) == mask
    assert mask_from_checkpoint(tmp_path) == mask


def test_the_names_of_a_vit_in_its_file_are_others(tmp_path):
    model = vit(0)
    mask = sparse(model)
    model.save_pretrained(tmp_path)
    assert not mask.keys() <= load_file(tmp_path / "model.safetensors").keys()


def test_no_cast_revives_a_pruned_weight_nor_prunes_a_tiny_one(tmp_path):
    model = bert()
    name, weight = next(iter(prunable(model).items()))
    mask = sparse(model)
    with torch.no_grad():
        weight[mask[name]] = 1e-30  # 0 in float16
        weight[~mask[name]] = -0.0
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    assert mask_from_checkpoint(tmp_path) == mask
    wide = BertForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert Mask.from_model(prunable(wide)) == mask


def test_include_and_exclude_are_those_of_prunable(tmp_path):
    model = bert()
    mask = sparse(model, include=".*", exclude="pooler")
    model.save_pretrained(tmp_path)
    assert "classifier.weight" in mask
    assert mask_from_checkpoint(tmp_path, include=".*", exclude="pooler") == mask
    with pytest.raises(ValueError, match="include must match the name of a prunable weight"):
        mask_from_checkpoint(tmp_path, include="nonsense")


def test_what_a_sparse_trainer_saves(tmp_path):
    model = net()
    mask = random_mask(model)
    mask.apply_(model)
    trainer = SparseTrainer(model=model, args=arguments(tmp_path / "run"), train_dataset=Points(), mask=mask)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert mask_from_checkpoint(tmp_path / "saved", model=net()) == mask == Mask.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("part", ["config", "architectures", "auto_map"])
def test_without_a_class_of_transformers_names_are_those_of_the_file(part, tmp_path):
    model = bert()
    mask = sparse(model)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if part == "config":
        (tmp_path / "config.json").unlink()
    elif part == "architectures":
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["PreTrainedModel"]}))
    else:  # code of the repository, which is never run
        code = {"AutoModel": "modeling_x.X", "AutoConfig": "modeling_x.C"}
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "x", "auto_map": code}))
        (tmp_path / "modeling_x.py").write_text("raise SystemError")
    assert mask_from_checkpoint(tmp_path, include=list(mask)) == mask  # BERT's names have not changed
    with pytest.raises(ValueError, match="include must tell weights from buffers .* names a class of the transformers"):
        mask_from_checkpoint(tmp_path)
    everything = mask_from_checkpoint(tmp_path, include="attention|embeddings", exclude="position")
    assert {"bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.output.dense.weight"} <= set(
        everything
    )
    assert not everything.keys() & {"bert.pooler.dense.weight", "bert.embeddings.position_embeddings.weight"}


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("build", [bert, lambda: vit(0)])
def test_pairs_of_torch_prune(build, with_config, tmp_path):
    model = build()
    names = [name for name in prunable(model, include=".*") if "query" in name or "q_proj" in name or "class" in name]
    modules = [model.get_submodule(name.removesuffix(".weight")) for name in names]
    with torch.no_grad():
        modules[0].weight[0] = 0  # a zero that no mask prunes
    for module in modules:
        prune.random_unstructured(module, "weight", 0.4)
        prune.random_unstructured(module, "bias", 0.5)
    expected = {}
    for name, module in zip(names, modules, strict=True):
        expected |= {name: module.weight_mask != 0, name.removesuffix("weight") + "bias": module.bias_mask != 0}
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    if with_config:
        assert mask_from_checkpoint(tmp_path) == Mask(expected)
        return
    (tmp_path / "config.json").unlink()
    found = mask_from_checkpoint(tmp_path)
    assert sorted(entry.sum() for entry in found.values()) == sorted(entry.sum() for entry in expected.values())
    assert (found == Mask(expected)) == (build is bert)


def adapter_folder(config, folder):
    torch.manual_seed(1)
    base = llama()
    peft = get_peft_model(base, config)
    peft.save_pretrained(folder)
    return llama(), peft


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_shira_trains_what_its_mask_keeps(tmp_path):
    model, peft = adapter_folder(ShiraConfig(r=1, target_modules=["q_proj", "up_proj"], init_weights=False), tmp_path)
    mask = mask_from_checkpoint(tmp_path, model=model)
    layer = peft.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    assert torch.equal(mask["model.layers.0.mlp.up_proj.weight"], layer.get_delta_weight("default").to_dense() != 0)
    assert len(mask) == 2 and mask.kept == 16 + 16 + 16 + 24
    indices = load_file(tmp_path / "adapter_model.safetensors")
    floats = {name: tensor.float() for name, tensor in indices.items()}  # as PEFT saves them on Windows
    save_file(floats, tmp_path / "adapter_model.safetensors")
    assert mask_from_checkpoint(tmp_path, model=model) == mask
    assert len(mask_from_checkpoint(tmp_path, model=model, include="mlp")) == 1


def test_super_tuning_trains_what_its_mask_keeps(tmp_path):
    config = SupertuningConfig(sparsity=0.8, target_modules=["down_proj"], init_weights=False)
    model, peft = adapter_folder(config, tmp_path)
    mask = mask_from_checkpoint(tmp_path, model=dict(model.named_parameters()))
    layer = peft.get_submodule("base_model.model.model.layers.0.mlp.down_proj")
    expected = {"model.layers.0.mlp.down_proj.weight": layer.get_delta_weight("default") != 0}
    assert mask == Mask(expected) and mask.kept == int(16 * 24 * (1 - 0.8))


@pytest.mark.parametrize(
    "config",
    [
        lambda: LoraConfig(target_modules=["q_proj"]),
        lambda: SupertuningConfig(sparsity=0.8, r=2, target_modules=["q_proj"]),
        lambda: SupertuningConfig(sparsity=0.8, save_precomputed_indices=False, target_modules=["q_proj"]),
    ],
)
@pytest.mark.filterwarnings("ignore:save_precomputed_indices=False")
def test_an_adapter_without_positions_is_refused(config, tmp_path):
    model, _ = adapter_folder(config(), tmp_path)
    with pytest.raises(ValueError, match="must list the positions it trains"):
        mask_from_checkpoint(tmp_path, model=model)


def test_a_sparse_adapter_needs_its_base_model(tmp_path):
    adapter_folder(ShiraConfig(r=1, target_modules=["up_proj"]), tmp_path)
    with pytest.raises(ValueError, match="does not tell the shapes.*pass it as model="):
        mask_from_checkpoint(tmp_path)
    with pytest.raises(MaskMismatchError, match="must be for a weight of the model; received none"):
        mask_from_checkpoint(tmp_path, model=bert())
    name = "model.layers.0.mlp.up_proj.weight"
    for wrong in (torch.ones(2, 2), torch.ones(24 * 16)):
        with pytest.raises(MaskMismatchError, match="must list positions within"):
            mask_from_checkpoint(tmp_path, model={name: wrong})
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: value.long() - 1 for key, value in load_file(path).items()}, path)
    with pytest.raises(MaskMismatchError, match="must list positions within"):
        mask_from_checkpoint(tmp_path, model=llama())


def test_a_model_type_of_any_kind_is_only_compared(tmp_path):
    save_file({"a": torch.eye(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": ["bert"], "architectures": {"BertModel": 1}}')
    assert mask_from_checkpoint(tmp_path, include="a") == Mask({"a": torch.eye(3) > 0})


def test_a_dense_checkpoint_is_refused(tmp_path):
    model = bert()
    assert not model.get_input_embeddings().weight[0].any()
    model.save_pretrained(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="must hold pruned weights; .* It is dense"):
            mask_from_checkpoint(tmp_path)
        (tmp_path / "config.json").unlink(missing_ok=True)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "sparsity_config"])
def test_a_compressed_config_is_refused(key, tmp_path):
    save_file({"a": torch.eye(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({key: {"format": "sparse-bitmask"}}))
    with pytest.raises(ValueError, match=f"received a quantised or compressed one .{key}"):
        mask_from_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["fc.weight.bitmask", "fc.weight.compressed", "fc.weight_packed", "fc.qweight", "fc"])
def test_compressed_tensors_are_refused(name, tmp_path):
    dtype = torch.float8_e4m3fn if name == "fc" else torch.uint8
    save_file({name: torch.zeros(3, 3).to(dtype), "other": torch.eye(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"received a quantised or compressed one .{name}"):
        mask_from_checkpoint(tmp_path)


def test_what_is_no_safetensors_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"or one .safetensors file; received none"):
        mask_from_checkpoint(tmp_path)
    torch.save({"a": torch.eye(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"received pytorch_model.bin, a pickle.*save_pretrained"):
        mask_from_checkpoint(tmp_path)
    Mask({"a": torch.ones(2) > 0}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"received a mask or ticket. Use Mask.from_pretrained"):
        mask_from_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"garbage!garbage!")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        mask_from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[", "must be JSON"),
        ("[]", "must hold a JSON object"),
        ('{"weight_map": ["a.safetensors"]}', "must map tensors to files beside it"),
        ('{"weight_map": {}}', "must map tensors to files beside it"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "must map tensors to files beside it"),
        ('{"weight_map": {"a": 3}}', "must map tensors to files beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "must be a safetensors file"),
    ],
)
def test_a_malformed_index_is_refused(index, message, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        mask_from_checkpoint(tmp_path)


def test_a_checkpoint_without_some_weights_is_refused(tmp_path):
    model = bert()
    mask = sparse(model)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    del stored[next(iter(mask))]
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="must hold every weight; received none for"):
        mask_from_checkpoint(tmp_path)
