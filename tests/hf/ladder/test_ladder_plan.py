"""What a ladder will cost, before it is computed."""

import json
import re

import pytest
from small_ladders import CONV, compute_all

from hf_lottery.hf.ladder import main as transfer_ladder
from hf_lottery.hf.ladder.pilot import without
from hf_lottery.hf.ladder.sweep import points

DIGITS = [*CONV, "--dataset_name", "digits", "--rows", "lth"]  # these are loaded faster
OWN = ["--row_learning_rate", "0.01"]


def steps_of(printed):
    return sum(int(text.replace(",", "")) for text in re.findall(r"([\d,]+) optimizer steps", printed))


SLOW = {"marks": pytest.mark.slow}


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        pytest.param(["lth"], {2}, id="rest", **SLOW),
        pytest.param(["lth", *OWN, "--start", "step:3"], {1}, id="own_schedule", **SLOW),
        pytest.param(["lth", *OWN, "--row_epochs", "3"], {6}, id="own_length"),
        pytest.param(["lrr_signs", *OWN, "--start", "init", "--lengths", "1", "4"], {2, 8}, id="lengths", **SLOW),
        pytest.param(
            ["lth", *OWN, "--start", "step:1", "--rewind", "none", "--sparsities", "0.3", "0.5"], {3}, id="sparsities",
            **SLOW,
        ),
    ],
)  # fmt: skip
def test_a_plan_counts_the_steps_that_are_taken(run, tmp_path, more, steps):
    """An epoch has two steps, and the dense training two epochs. Ladders share searches."""
    command = [*DIGITS, "--targets", "1", "--output_dir", tmp_path, "--rows", "dense", *more]
    printed = run(transfer_ladder, *command, "--plan")
    for point in points([*map(str, command)]):
        compute_all(point.ladder)
    cells = [json.loads(file.read_text()) for file in tmp_path.glob("cells/*.json")]
    assert steps_of(printed) == sum(cell["steps"] for cell in cells)
    assert {cell["steps"] for cell in cells if cell["cell"] == "dense-1"} == {4}
    assert {cell["steps"] for cell in cells if cell["cell"] in ("lth-1", "lrr_signs-1")} == steps
    assert printed.count(" cells are left") == (2 if {"--lengths", "--sparsities"} & {*more} else 1)
    assert run(transfer_ladder, *command, "--plan") == "Nothing is left to do.\n"


def test_a_plan_writes_nothing(run, tmp_path):
    printed = run(transfer_ladder, *DIGITS, "--output_dir", tmp_path / "none", "--plan")
    assert "6 of 6 cells are left: 2 searches and 4 final trainings" in printed
    assert "pilot" not in printed and not (tmp_path / "none").exists()


def test_a_plan_says_that_a_pilot_comes_first_until_it_is_finished(run, tmp_path, monkeypatch):
    command = [*DIGITS, "--output_dir", tmp_path / "none", "--scan", "0.3", "--pilot_seeds", "7", "8", "9", "--plan"]
    printed = run(transfer_ladder, *command)
    assert "6 of 6 cells are left" in printed and "The pilot comes on top. It trains 3 networks" in printed
    assert not (tmp_path / "none").exists()
    chosen = ["--num_train_epochs", "8", "--sparsities", "0.6"]
    monkeypatch.setattr(
        "hf_lottery.hf.ladder.plan.settle", lambda command, read: ([*without(command, "--scan"), *chosen], {})
    )
    settled = run(transfer_ladder, *command)
    assert "sparsity=0.6: 6 of 6 cells are left" in settled and "pilot" not in settled
    assert steps_of(settled) > 4 * steps_of(printed)
