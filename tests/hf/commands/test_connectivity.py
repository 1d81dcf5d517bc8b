"""connectivity: barriers between two networks, before and after alignment, and the overlap of their masks."""

import json

import pytest
import torch
from recipe_runs import DIGITS, SMALL, titles
from transformers import AutoModelForImageClassification

from hf_lottery import Mask, discover, permute_
from hf_lottery.hf.commands import connectivity, find_ticket

HEAD = ["What it is", "Barrier", "How it was measured", "Limits"]


def test_alignment_undoes_a_permutation(run, digits_search, tmp_path):
    """A network and its own permutation: as far apart as strangers, and the same once they are aligned."""
    trained = digits_search[0] / "level-02/trained"
    model = AutoModelForImageClassification.from_pretrained(trained)
    mask = Mask.from_pretrained(trained)
    permutation = discover(model, {"pixel_values": torch.randn(2, 1, 8, 8)}).random(3)
    permute_(model, permutation)
    model.save_pretrained(tmp_path / "permuted")
    permutation(mask).save_pretrained(tmp_path / "permuted")
    out = run(
        connectivity, *SMALL, "--points", 3, "--a", trained, "--b", tmp_path / "permuted", "--align", "weight",
        "--output_dir", tmp_path / "c",
    )  # fmt: skip
    assert "barrier as they were: " in out and "barrier aligned by weight: 0.0000" in out
    assert titles(tmp_path / "c") == [*HEAD, "Match", "Overlap of the masks"]
    before, after = json.loads((tmp_path / "c/connectivity.json").read_text()).values()
    assert before["barrier"] > 0.01 and after["barrier"] == 0 and len(set(after["errors"])) == 1
    rows = [row.split(",") for row in (tmp_path / "c/overlap.csv").read_text().splitlines()]
    assert rows[0] == ["row", "column", "intersection over union"]
    assert {column for _, column, _ in rows[1:]} == {"as they were", "aligned", "chance"}
    assert all(float(value) == 1 for _, column, value in rows[1:] if column == "aligned")


def test_without_masks_and_alignment_only_the_barrier_is_shown(run, digits_search, tmp_path):
    folder = digits_search[0] / "level-00/trained"
    pair = ["--a", folder, "--b", digits_search[0] / "level-01/trained"]
    run(connectivity, *SMALL, "--points", 2, *pair, "--align", "none", "--output_dir", tmp_path)
    assert titles(tmp_path) == HEAD


@pytest.mark.slow
def test_networks_and_tickets_of_the_hub_are_compared(run, hub, tmp_path):
    run(
        find_ticket, *SMALL, "--sparsity", 0.3, "--rewind", "init", "--output_dir", tmp_path / "find",
        "--push_to_hub", "true", "--hub_model_id", "alice/ticket",
    )  # fmt: skip
    trained = AutoModelForImageClassification.from_pretrained(tmp_path / "find/level-00/trained")
    trained.push_to_hub("alice/dense")
    run(
        connectivity, *SMALL, "--a", "alice/ticket", "--b", "alice/dense", "--align", "none", "--points", 3,
        "--output_dir", tmp_path / "line",
    )  # fmt: skip
    errors = json.loads((tmp_path / "line/connectivity.json").read_text())["as they were"]["errors"]
    assert len(errors) == 3 and errors[0] > errors[2]  # a ticket is not trained yet


def test_a_missing_network_is_named(run, digits_search, tmp_path):
    dense = digits_search[0] / "level-00/trained"
    with pytest.raises(
        SystemExit, match="connect: a network must be a folder .* a model or ticket; received .*nothing"
    ):
        run(connectivity, *SMALL, "--a", tmp_path / "nothing", "--b", dense, "--output_dir", tmp_path / "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--align", "luck"], "align must be one of weight, activation, none; received 'luck'"),
        (["--points", 1], "points must be at least 2; received 1"),
    ],
)
def test_bad_command_lines(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(connectivity, *DIGITS, "--a", "x", "--b", "y", *arguments)
    assert message in capsys.readouterr().err
