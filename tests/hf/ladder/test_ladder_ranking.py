"""Which ways to align are the best, or cannot be told from the best."""

import json

import pytest

from hf_lottery.hf.ladder import show
from hf_lottery.hf.ladder.ranking import near_best, ranking

WAYS = ["permuted_weight", "permuted_activation", "permuted_learned"]


def results_with(values, *, measure="accuracy", informative=True, title="LeNet"):
    rows = {row: {"values": value, "minus_naive": 1.0, "half_width": 0.5} for row, value in values.items()}
    about = {"point": ""}
    return {"title": title, "about": about, "measure": measure, "rows": rows, "informative": informative, "ring": False}


VALUES = {
    "permuted_weight": [90.0, 91.0, 92.0],
    "permuted_activation": [89.8, 91.4, 91.9],  # differs from the best by chance
    "permuted_learned": [88.0, 89.1, 89.9],  # always two points less
}


def test_a_row_near_the_best_cannot_be_told_from_it():
    assert near_best(results_with(VALUES), WAYS) == WAYS[:2]
    assert near_best(results_with(VALUES), ["permuted_learned"]) == ["permuted_learned"]
    assert near_best(results_with(VALUES), ["permuted_early"]) == []


def test_lower_losses_are_better():
    found = near_best(results_with(VALUES, measure="loss"), WAYS)
    assert found == ["permuted_learned"]


def test_stars_are_counted_over_ladders_that_tell_masks_apart():
    fewer = {row: VALUES[row] for row in WAYS[1:]}
    ladders = [results_with(VALUES), results_with(fewer, title="ViT"), results_with(VALUES, informative=False)]
    table = ranking(ladders, WAYS)
    assert table.header == ["minus naive", *WAYS]
    assert table.rows[0] == ["LeNet", "+1.00 ± 0.50 *", "+1.00 ± 0.50 *", "+1.00 ± 0.50"]
    assert table.rows[1][1] == "-" and table.rows[1][2].endswith("*")
    assert not any("*" in text for text in table.rows[2])
    assert table.rows[3] == ["stars", "1 of 1", "2 of 2", "0 of 2"]


def test_the_command_ranks(tmp_path, capsys):
    file = tmp_path / "ladder.json"
    file.write_text(json.dumps(results_with(VALUES)))
    show.main([str(file), "--rank", *WAYS])
    assert "| 1 of 1" in capsys.readouterr().out
    with pytest.raises(ValueError, match="rows must name rows of these ladders; received luck"):
        show.main([str(file), "--rank", "luck"])
