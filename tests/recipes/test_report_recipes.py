"""The pages that the recipes leave, on small data."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hf_lottery import Mask, discover, permute_
from hf_lottery.hf.commands import connectivity, find_ticket, report_sections, train_ticket
from hf_lottery.report import dead_units

ROOT = Path(__file__).parent.parent.parent
DIGITS = ["--config", ROOT / "recipes/digits/imp.yaml", "--config_name", ROOT / "recipes/digits/config.json"]
SMALL = ["--num_train_epochs", 2, "--max_train_samples", 128]


def titles(folder):
    """Headings of the page, after a look at what it refers to."""
    page = (folder / "report.html").read_text()
    assert all(image.startswith("data:image/png;base64,") for image in re.findall(r'src="(.*?)"', page))
    for link in re.findall(r'<a href="([^#"]+)"', page):
        assert (folder / link).exists() and (folder / link).with_suffix(".png").exists()
    return re.findall(r"<h2.*?>(.*?)</h2>", page)


def test_pages_of_a_search_a_training_and_two_networks(run, tmp_path):
    out = run(find_ticket, *DIGITS, *SMALL, "--sparsity", 0.3, "--rewind", "step:2", "--output_dir", tmp_path / "find")
    assert f"report:  {tmp_path / 'find/report.html'}" in out
    assert titles(tmp_path / "find") == ["Levels", "Accuracy against sparsity", "Sparsity of every layer", "Sign flips"]
    for name, seed, mask in (("a", 7, "ticket"), ("b", 8, "shuffled"), ("dense", 9, "none")):
        run(
            train_ticket, *DIGITS, *SMALL, "--ticket", tmp_path / "find/ticket", "--init", f"seed:{seed}", "--mask",
            mask, "--output_dir", tmp_path / name,
        )  # fmt: skip
    assert titles(tmp_path / "a") == ["What was trained", "Metrics", "Sparsity of every layer"]
    assert titles(tmp_path / "dense") == ["What was trained", "Metrics"]

    flags = [*DIGITS, "--max_train_samples", 128, "--points", 3, "--match_batches", 2]
    two = ["--a", tmp_path / "a", "--b", tmp_path / "b"]
    out = run(connectivity, *flags, *two, "--align", "weight", "--output_dir", tmp_path / "ab")
    assert titles(tmp_path / "ab") == ["Barrier", "Match", "Overlap of the masks"]
    assert "barrier as they were: " in out and "barrier aligned by weight: " in out
    rows = (tmp_path / "ab/overlap.csv").read_text().splitlines()
    assert rows[0] == "row,column,intersection over union" and {row.split(",")[1] for row in rows[1:]} == {
        "as they were", "aligned", "chance"
    }  # fmt: skip
    one = ["--a", tmp_path / "dense", "--b", tmp_path / "b"]
    run(connectivity, *flags, *one, "--align", "none", "--output_dir", tmp_path / "none")
    assert titles(tmp_path / "none") == ["Barrier"]


def test_alignment_undoes_a_permutation(run, tmp_path):
    """A network and its own permutation: as far apart as strangers, and the same once they are aligned."""
    run(find_ticket, *DIGITS, *SMALL, "--sparsity", 0.3, "--rewind", "step:2", "--output_dir", tmp_path / "find")
    trained = tmp_path / "find/level-02/trained"
    model = AutoModelForImageClassification.from_pretrained(trained)
    mask = Mask.from_pretrained(trained)
    permutation = discover(model, {"pixel_values": torch.randn(2, 1, 8, 8)}).random(3)
    permute_(model, permutation)
    model.save_pretrained(tmp_path / "permuted")
    permutation(mask).save_pretrained(tmp_path / "permuted")
    run(
        connectivity, *DIGITS, "--max_train_samples", 128, "--points", 3, "--a", trained, "--b", tmp_path / "permuted",
        "--align", "weight", "--output_dir", tmp_path / "c",
    )  # fmt: skip
    before, after = json.loads((tmp_path / "c/connectivity.json").read_text()).values()
    assert before["barrier"] > 0.01 and after["barrier"] == 0 and len(set(after["errors"])) == 1
    overlaps = [row.split(",")[1:] for row in (tmp_path / "c/overlap.csv").read_text().splitlines()[1:]]
    assert all(float(value) == 1 for column, value in overlaps if column == "aligned")


def test_pages_of_signs(run, tmp_path):
    sizes = {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 8, "patch_size": 4, "num_channels": 1,
    }  # fmt: skip
    (tmp_path / "vit.json").write_text(json.dumps(sizes))
    flags = [
        "--config", ROOT / "recipes/digits/aws.yaml", "--config_name", tmp_path / "vit.json", *SMALL, "--dense_epochs",
        1, "--level_epochs", 1, "--sparsity", 0.3,
    ]  # fmt: skip
    run(find_ticket, *flags, "--output_dir", tmp_path / "run")
    assert titles(tmp_path / "run")[-2:] == ["Sign flips", "Norm path"]
    run(
        train_ticket, *flags, "--ticket", tmp_path / "run/ticket", "--init", "seed:7", "--signs", "ticket",
        "--output_dir", tmp_path / "t",
    )  # fmt: skip
    assert titles(tmp_path / "t")[-1] == "Sign agreement"


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--align", "luck"], "align must be one of activation, weight, none; received 'luck'"),
        (["--points", 1], "points must be at least 2; received 1"),
    ],
)
def test_bad_command_lines(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(connectivity, *DIGITS, "--a", "x", "--b", "y", *arguments)
    assert message in capsys.readouterr().err


def test_networks_and_tickets_of_the_hub_are_compared(run, hub, tmp_path):
    run(
        find_ticket, *DIGITS, *SMALL, "--sparsity", 0.3, "--rewind", "init", "--output_dir", tmp_path / "find",
        "--push_to_hub", "true", "--hub_model_id", "alice/ticket",
    )  # fmt: skip
    trained = AutoModelForImageClassification.from_pretrained(tmp_path / "find/level-00/trained")
    trained.push_to_hub("alice/dense")
    run(
        connectivity, *DIGITS, *SMALL, "--a", "alice/ticket", "--b", "alice/dense", "--align", "none", "--points", 3,
        "--output_dir", tmp_path / "line",
    )  # fmt: skip
    errors = json.loads((tmp_path / "line/connectivity.json").read_text())["as they were"]["errors"]
    assert len(errors) == 3 and errors[0] > errors[2]  # a ticket is not trained yet
    with pytest.raises(FileNotFoundError, match="folder or repository of a model or ticket; received alice/nothing"):
        run(connectivity, *DIGITS, *SMALL, "--a", "alice/nothing", "--b", "alice/dense", "--output_dir", tmp_path / "x")
