"""The comparison at the end of find_ticket: what is trained, what is kept, and what the last lines claim."""

import json

import numpy as np
import pytest
import torch
from recipe_runs import ROOT, SEARCH, small_vit, titles

from hf_lottery import Mask
from hf_lottery.hf.commands import find_ticket
from hf_lottery.hf.commands.comparison import Comparison
from hf_lottery.hf.commands.controls import STARTS

LENET = [*SEARCH, "--config_name", ROOT / "recipes/digits/lenet.json", "--max_train_samples", 64]


def lines(out):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]


def comparison(measure="accuracy", **leads):
    """A comparison in which the ticket is ahead of each row by the given values."""
    ticket = np.array([0.90, 0.92, 0.91])
    values = {name: ticket - np.array(leads.get(name, [0, 0, 0])) for name in STARTS}
    return Comparison(measure, 0.9, values)


def test_a_search_ends_with_the_comparison_and_goes_on_with_it(run, tmp_path):
    folder = tmp_path / "run"
    out = run(find_ticket, *LENET, "--output_dir", folder, "--compare", 2)
    assert [row[0] for row in lines(out)[-4:]] == ["dense", "ticket", "random mask", "re-initialised"]
    assert "\n\nAfter as many steps, the ticket " in out
    assert titles(folder)[:2] == ["What it is", "How good it is"]
    assert "After as many steps, the ticket " in (folder / "report.html").read_text()
    file = folder / "comparison.json"
    results = json.loads(file.read_text())
    losses = {key: result["eval_loss"] for key, result in results.items()}
    assert losses.keys() == {f"{number}:{name}" for number in range(2) for name in STARTS}
    assert len(set(losses.values())) == 8  # also with a data_seed, trainings differ in their data order
    results["0:ticket"]["eval_accuracy"] = 0.5  # to tell what is kept from what is trained again
    del results["1:dense"]
    file.write_text(json.dumps(results))
    run(find_ticket, *LENET, "--output_dir", folder, "--compare", 2)
    again = json.loads(file.read_text())
    assert again["0:ticket"]["eval_accuracy"] == 0.5 and again["1:dense"]["eval_loss"] == losses["1:dense"]


def test_the_rows_differ_in_what_their_names_say(monkeypatch):
    class Start:
        step = 3

        def restore_(self, model):
            model["weights"] = "ticket"

    monkeypatch.setattr("hf_lottery.hf.commands.controls.build_model", lambda *args, **fresh: {"fresh": bool(fresh)})
    mask = Mask({"a": torch.arange(100).view(10, 10) < 30, "b": torch.arange(50).view(5, 10) < 5})
    ticket = type("Ticket", (), {"mask": mask, "start": Start()})()
    starts = {name: start(ticket, None, None, 1, Mask.shuffled) for name, start in STARTS.items()}
    assert {name: start[2] for name, start in starts.items()} == {"dense": 3, "ticket": 3, "shuffled": 3, "reinit": 0}
    assert [name for name, start in starts.items() if start[0].get("weights")] == ["dense", "ticket", "shuffled"]
    assert starts["dense"][1] is None and starts["reinit"][0]["fresh"]
    assert starts["ticket"][1] == starts["reinit"][1] == mask != starts["shuffled"][1]
    assert starts["shuffled"][1].layer_sparsities() == mask.layer_sparsities()


@pytest.mark.parametrize(
    ("measure", "leads", "sentence"),
    [
        ("accuracy", {}, "cannot be told from the dense network, a random mask and a new initialization."),
        (
            "accuracy",
            {"dense": [-0.02, -0.03, -0.02], "shuffled": [0.1, 0.11, 0.1], "reinit": [0.0, 0.05, 0.01]},
            "is better than a random mask and worse than the dense network.\nIt cannot be told from a new "
            "initialization.",
        ),
        (
            "loss",
            {"dense": [-0.1, -0.11, -0.1], "shuffled": [-0.02, -0.03, -0.02], "reinit": [0.1, 0.11, 0.1]},
            "is better than the dense network and a random mask and worse than a new initialization.",
        ),
    ],
)
def test_no_difference_inside_the_noise_is_claimed(measure, leads, sentence):
    assert comparison(measure, **leads).conclusion == f"After as many steps, the ticket {sentence}"


def test_differences_are_paired():
    table = comparison(shuffled=[0.05, 0.05, 0.05]).table
    assert table.header == ["at 90.00 % sparsity", "accuracy in %", "ticket minus it"]
    assert table.rows[1] == ["ticket", "91.0 ± 2.5", ""]
    assert table.rows[2] == ["random mask", "86.0 ± 2.5", "+5.0 ± 0.0"]
    assert comparison("loss", dense=[0.5, 0.5, 0.5]).table.rows[0][2] == "+0.5000 ± 0.0000"


def test_what_cannot_be_compared_is_refused_before_the_search(run, tmp_path):
    with pytest.raises(SystemExit, match="compare must come with a search that rewinds .* rewind=learning_rate"):
        run(find_ticket, *small_vit(tmp_path), "--output_dir", tmp_path / "signs", "--compare", 2)
    assert not list(tmp_path.glob("*/level-*"))


def test_equal_differences_of_few_trainings_are_no_proof():
    values = {"dense": np.array([0.5, 0.5]), "ticket": np.array([0.6, 0.6])}
    assert Comparison("accuracy", 0.9, values).conclusion == (
        "After as many steps, the ticket cannot be told from the dense network."
    )
