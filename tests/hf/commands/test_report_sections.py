"""The pages that the commands leave."""

import pytest
import torch
from recipe_runs import SMALL, titles
from transformers import ViTConfig, ViTForImageClassification

from hf_lottery import Mask, PermutationSpec, Ticket, discover
from hf_lottery.hf.commands import report_sections, train_ticket
from hf_lottery.hf.hub.ticket_card import LIMITS, name_of
from hf_lottery.report import empty_rows


def test_the_page_of_a_search(digits_search):
    folder, out = digits_search
    assert f"report:  {folder / 'report.html'}" in out
    assert titles(folder)[:4] == ["What it is", "How good it is", "How it was found", "Limits"]
    assert titles(folder)[4:] == ["Levels", "Sparsity of every layer", "Sign flips"]
    page = (folder / "report.html").read_text()
    assert "<h1>Ticket of ResNet on digits</h1>" in page and LIMITS in page
    assert "one seed (" in page and "This table has no random mask and no new initialization" in page
    assert str(folder) not in page and "0.0000" not in page
    info = Ticket.from_pretrained(folder / "ticket").info
    for fact in (info["about"]["date"], info["about"]["hardware"], f"torch {info['about']['versions']['torch']}"):
        assert fact in page
    assert "<td>dataset name</td>" not in page and "<td>adam epsilon</td>" not in page  # told already, unchanged


def test_the_page_of_a_search_for_signs(sign_search):
    assert titles(sign_search[0])[-2:] == ["Sign flips", "Norm path"]


@pytest.mark.parametrize("mask", ["none", pytest.param("ticket", marks=pytest.mark.slow)])
def test_the_page_of_a_training(run, digits_search, tmp_path, mask):
    run(
        train_ticket, *SMALL, "--ticket", digits_search[0] / "ticket", "--init", "seed:7", "--mask", mask,
        "--output_dir", tmp_path,
    )  # fmt: skip
    layers = ["Sparsity of every layer"] if mask == "ticket" else []
    assert titles(tmp_path) == ["What was trained", "How good it is", "How it was trained", "Limits", *layers]
    page = (tmp_path / "report.html").read_text()
    assert "<td>init</td><td>seed:7</td>" in page and "One training with one seed (" in page
    assert str(tmp_path) not in page and str(digits_search[0]) not in page and "runtime" not in page


def test_the_page_of_a_training_with_signs(run, sign_search, tmp_path):
    found, _, settings = sign_search
    run(
        train_ticket, *settings, "--ticket", found / "ticket", "--init", "seed:7", "--signs", "ticket", "--output_dir",
        tmp_path,
    )  # fmt: skip
    assert titles(tmp_path)[-2:] == ["Sparsity of every layer", "Sign agreement"]


def test_a_network_is_named_with_its_data(tmp_path):
    names = {
        "digits": "ViT on digits",
        "nyu-mll/glue": "ViT on nyu-mll/glue",
        str(tmp_path): "ViT",  # a folder would tell of one machine
        None: "ViT",
    }
    for data, name in names.items():
        assert name_of("ViTForImageClassification", {"settings": {"dataset_name": data}}) == name
    assert name_of("FormerModel", {}) == "FormerModel"


def test_with_a_spec_the_page_says_which_units_are_dead(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    mask = Mask({"2.weight": torch.tensor([[True, False, True], [False, False, True]])})
    spec = discover(model, (torch.randn(5, 4),))
    first, second = report_sections.mask_sections(mask, model, "a name", tmp_path, spec)
    assert first.text.endswith("Without any weight left: no neuron.") and second.title == "Dead units"
    assert second.table.rows == [("0.weight[0]", "1", "3")]
    older = PermutationSpec(spec.groups.values(), spec.tensors)
    for known in (None, older):
        assert len(report_sections.mask_sections(mask, model, "a name", tmp_path, known)) == 1


def test_heads_are_found():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8, image_size=8, patch_size=4
    )
    model = ViTForImageClassification(config)
    mask = Mask.dense(model)
    found = empty_rows(mask, heads=report_sections.heads_of(model))
    with_heads = {name for name, dead in found.items() if dead.heads == 4}
    assert sorted(name.rsplit(".", 2)[1] for name in with_heads) == ["k_proj", "q_proj", "v_proj"]
    assert report_sections.heads_of(torch.nn.Linear(2, 2)) == {}
