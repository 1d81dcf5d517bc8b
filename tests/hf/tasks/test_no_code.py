"""No code of a repository is run by a task, and nobody is asked whether it may be."""

import json

import pytest
import torch
from small_task import vit
from transformers import ViTConfig

from hf_lottery.hf.hub.checkpoint import load_model
from hf_lottery.hf.tasks.data import DataArguments
from hf_lottery.hf.tasks.images import load_image_processor
from hf_lottery.hf.tasks.loading import load_data
from hf_lottery.hf.tasks.models import ModelArguments, load_checkpoint, load_network

CODE = "import builtins\nbuiltins.code_was_run = True\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model whose files name code for everything that can be loaded."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    monkeypatch.setattr("builtins.code_was_run", False, raising=False)
    vit(0).save_pretrained(tmp_path)
    names = ("AutoConfig", "AutoModelForImageClassification", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor")
    code = {"auto_map": {name: "code.Class" if name != "AutoTokenizer" else ["code.Class", None] for name in names}}
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **code, "model_type": "not_known"}))
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(code))
    (tmp_path / "code.py").write_text(CODE)
    return tmp_path


def load_texts(folder):
    table = folder / "data"
    table.mkdir()
    (table / "train.csv").write_text("text,label\n" + "a,0\nb,1\n" * 4)
    args = DataArguments(dataset_name=str(table))
    return load_data(args, "text-classification", seed=0, model_name_or_path=str(folder))


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: ModelArguments(config_name=str(folder)).load_config(),
        lambda folder: load_checkpoint(str(folder), "image-classification"),
        lambda folder: load_network(str(folder), "image-classification"),
        lambda folder: load_image_processor(str(folder), {}),
        load_texts,
    ],
    ids=["config", "checkpoint", "network", "image_processor", "tokenizer"],
)
def test_code_of_a_repository_is_refused(folder, load):
    with pytest.raises((ValueError, OSError)):
        load(folder)
    import builtins

    assert not builtins.code_was_run  # pyright: ignore[reportAttributeAccessIssue]


def test_a_model_that_asks_for_a_kernel_of_a_repository(folder):
    config = ViTConfig(**vit(0).config.to_diff_dict()).to_dict()
    kernel = {**config, "architectures": ["ViTForImageClassification"], "_attn_implementation": "someone/kernel"}
    (folder / "config.json").write_text(json.dumps(kernel))
    for load in (
        lambda: load_checkpoint(str(folder), "image-classification"),
        lambda: load_network(str(folder), "image-classification"),
        lambda: load_model(folder),
        lambda: ModelArguments(config_name=str(folder)).load_config(),
    ):
        with pytest.raises(ValueError, match="must not name code of a repository; received _attn_implementation"):
            load()


def test_pickles_run_nothing(folder):
    class Evil:
        def __reduce__(self):
            return exec, (CODE,)

    config = vit(0).config.to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.bias": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="weights_only|Weights only|Unsupported|pickle"):
        load_checkpoint(str(folder), "image-classification")
    import builtins

    assert not builtins.code_was_run  # pyright: ignore[reportAttributeAccessIssue]


def test_code_cannot_be_asked_for(folder):
    args = DataArguments(dataset_name=str(folder))
    with pytest.raises(ValueError, match="trust_remote_code must be left out"):
        load_data(args, "text-classification", seed=0, from_pretrained={"trust_remote_code": True})
