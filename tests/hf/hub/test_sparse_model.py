"""A finished sparse model is a plain model of transformers, with its mask beside it."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_task import vit
from small_tickets import mask, ticket
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor

from hf_lottery import Mask, MaskMismatchError, Snapshot, Ticket, prunable
from hf_lottery.hf import SparseModel


def sparse(seed=0):
    model = vit(seed)
    mask().apply_(model)
    return model


def test_one_commit_holds_all_that_others_and_we_need(hub):
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    SparseModel.of(sparse(), mask(), processing=processor).push_to_hub("alice/sparse")
    assert sorted(hub.repos["alice/sparse"].files("main")) == [
        ".gitattributes", "README.md", "config.json", "mask.safetensors", "mask_config.json", "model.safetensors",
        "preprocessor_config.json",
    ]  # fmt: skip
    plain = AutoModelForImageClassification.from_pretrained("alice/sparse")
    assert AutoImageProcessor.from_pretrained("alice/sparse").size["height"] == 8
    found = SparseModel.from_pretrained("alice/sparse")
    assert found.mask == mask() == Mask.from_pretrained("alice/sparse") == Mask.from_model(prunable(plain))
    assert Snapshot.capture(found.model).sha256() == Snapshot.capture(plain).sha256()
    found.push_to_hub("alice/again", subfolder="a")
    again = SparseModel.from_pretrained("alice/again", subfolder="a")
    assert again.mask == mask() and again.processing == found.processing != {}


def test_the_code_of_its_card_runs(tmp_path, monkeypatch):
    SparseModel.of(sparse(), mask()).save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    card, values = (tmp_path / "README.md").read_text(), {}
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(block, values)
    assert values["sparse"].mask == Mask.from_model(prunable(values["model"]))
    assert f"sparsity **{mask().sparsity:.2%}**" in card


def test_what_is_not_sparse_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pruned weights must be zero; received .* that are not"):
        SparseModel.of(vit(0), mask())
    with pytest.raises(MaskMismatchError):
        SparseModel.of(sparse(), Mask({"x": torch.ones(2, dtype=torch.bool)}))
    sparse().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        SparseModel.from_pretrained(tmp_path)
    mask().save_pretrained(tmp_path)  # as the SparseTrainer leaves it
    assert SparseModel.from_pretrained(tmp_path).mask == mask()
    vit(0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pruned weights must be zero"):
        SparseModel.from_pretrained(tmp_path)


def adapted(model):
    return get_peft_model(model, LoraConfig(target_modules="all-linear"))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("wrap", [nn.DataParallel, adapted])
def test_a_wrapper_and_an_adapter_that_is_not_merged_are_refused(wrap):
    with pytest.raises(TypeError, match="model must be a model of transformers; received .*Merge adapters with"):
        SparseModel.of(wrap(sparse()), mask())


def test_weights_of_an_earlier_ticket_do_not_make_it_a_ticket(tmp_path):
    ticket().save_pretrained(tmp_path)
    SparseModel.of(sparse(5), mask()).save_pretrained(tmp_path)
    assert (tmp_path / "rewind.safetensors").exists()
    with pytest.raises(FileNotFoundError, match="a ticket must have weights to start from.*holds only a mask"):
        Ticket.from_pretrained(tmp_path)


@pytest.mark.parametrize("processing", ["alice/tokenizer", {"tokenizer.json": b"{}"}])
def test_the_name_or_the_files_of_a_tokenizer_are_no_tokenizer(processing):
    with pytest.raises(TypeError, match="processing must be a tokenizer or image processor; received"):
        SparseModel.of(sparse(), mask(), processing=processing)


def test_no_local_path_is_pushed(hub, tmp_path):
    model = sparse()
    model.config.teacher_path = str(tmp_path)
    SparseModel.of(model, mask()).push_to_hub("alice/sparse")
    assert str(tmp_path).encode() not in hub.repos["alice/sparse"].files("main")["config.json"]
    assert model.config.teacher_path == str(tmp_path)
