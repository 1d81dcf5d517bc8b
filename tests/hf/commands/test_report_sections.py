"""The pages that the commands leave."""

import pytest
import torch
from recipe_runs import SMALL, titles
from transformers import ViTConfig, ViTForImageClassification

from hf_lottery import Mask
from hf_lottery.hf.commands import report_sections, train_ticket
from hf_lottery.report import dead_units


def test_the_page_of_a_search(digits_search):
    folder, out = digits_search
    assert f"report:  {folder / 'report.html'}" in out
    assert titles(folder) == ["Levels", "Accuracy against sparsity", "Sparsity of every layer", "Sign flips"]


def test_the_page_of_a_search_for_signs(sign_search):
    assert titles(sign_search[0])[-2:] == ["Sign flips", "Norm path"]


@pytest.mark.parametrize("mask", ["none", pytest.param("ticket", marks=pytest.mark.slow)])
def test_the_page_of_a_training(run, digits_search, tmp_path, mask):
    run(
        train_ticket, *SMALL, "--ticket", digits_search[0] / "ticket", "--init", "seed:7", "--mask", mask,
        "--output_dir", tmp_path,
    )  # fmt: skip
    layers = ["Sparsity of every layer"] if mask == "ticket" else []
    assert titles(tmp_path) == ["What was trained", "Metrics", *layers]


def test_the_page_of_a_training_with_signs(run, sign_search, tmp_path):
    found, _, settings = sign_search
    run(
        train_ticket, *settings, "--ticket", found / "ticket", "--init", "seed:7", "--signs", "ticket", "--output_dir",
        tmp_path,
    )  # fmt: skip
    assert titles(tmp_path)[-2:] == ["Sparsity of every layer", "Sign agreement"]


def test_heads_are_found():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8, image_size=8, patch_size=4
    )
    model = ViTForImageClassification(config)
    mask = Mask.dense(model)
    found = dead_units(mask, heads=report_sections.heads_of(model))
    with_heads = {name for name, dead in found.items() if dead.heads == 4}
    assert sorted(name.rsplit(".", 2)[1] for name in with_heads) == ["k_proj", "q_proj", "v_proj"]
    assert report_sections.heads_of(torch.nn.Linear(2, 2)) == {}
