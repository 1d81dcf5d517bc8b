"""What a ladder shows, or that it shows nothing."""

import json

import numpy as np
import pytest
from small_ladders import CONV

from hf_lottery.hf.ladder.paired import interval
from hf_lottery.hf.ladder.results import write_results
from hf_lottery.hf.ladder.sweep import points
from hf_lottery.hf.ladder.table import conclusions, difference_table, label, ladder_table

NAIVE = np.array([0.50, 0.52, 0.54, 0.52])
WIGGLE = np.array([0.004, -0.004, 0.002, -0.002])
LANGUAGE = ["--task", "causal-lm", "--config_name", "recipes/king_james/gpt2"]
ROWS = ["lth", "naive", "permuted_weight", "permuted_activation"]


@pytest.fixture
def results_of(tmp_path):
    """A function that makes the results of a ladder from the measures of its rows."""

    def write(values, *more):
        command = [*CONV, "--seeds", "0", "1", "2", "3", "--rows", *values, "--output_dir", str(tmp_path), *more]
        (point,) = points(command)
        for cell in point.ladder.cells:
            found = {"cpu_seconds": 1.0, "seconds": 1.0, "sparsity": 0.3}
            if point.ladder.is_row(cell):
                found["measure"] = values[cell.kind][cell.seed]
            point.ladder.file(cell).parent.mkdir(exist_ok=True)
            point.ladder.file(cell).write_text(json.dumps(found))
        return write_results(point, {"epochs": 4})

    return write


def rows_with(gap, *, gains=(0.0, 0.0), wiggle=WIGGLE):
    gained = [NAIVE + gap + wiggle, NAIVE, *(NAIVE + gain + wiggle for gain in gains)]
    return dict(zip(ROWS, gained, strict=True))


def test_a_large_gap_is_closed_in_part(results_of):
    results = results_of(rows_with(0.10, gains=(0.05, 0.001)), "--pairs", "permuted_weight-permuted_activation")
    assert results["informative"] is True and results["ring"] is True and results["pilot"] == {"epochs": 4}
    share, low, high = results["rows"]["permuted_weight"]["gap_closed"]
    assert share == pytest.approx(0.5) and low < share < high
    (text,) = conclusions(results)
    first, weight, activation = text.split("\n")
    half = interval(100 * (0.10 + WIGGLE), ring=True)[1]
    assert first == f"lth - naive is +10.00 ± {half:.2f} points."
    assert weight.startswith(f"permuted_weight gains +5.00 ± {half:.2f} points and closes 50 % (")
    assert weight.endswith("of the gap.") and activation.endswith("of the gap, which may be chance.")
    (difference,) = difference_table(results).rows
    assert difference[1:] == ["+4.90 ± 0.00", "4 of 4"]


@pytest.mark.parametrize(
    ("gap", "wiggle"),
    [(0.025, WIGGLE), (0.04, 5 * WIGGLE), (-0.10, WIGGLE)],
    ids=["small", "uncertain", "negative"],
)
def test_a_gap_that_is_too_small_gives_no_conclusion(results_of, gap, wiggle):
    results = results_of(rows_with(gap, gains=(0.05, 0.01), wiggle=wiggle))
    assert results["informative"] is False
    assert all(row["gap_closed"] is None for row in results["rows"].values())
    assert "gap closed (95 %)" not in ladder_table(results).header
    (text,) = conclusions(results)
    assert text.startswith(f"No conclusion: lth - naive is {100 * gap:+.2f} ± ") and "--scan" in text


def test_losses_should_be_small(results_of):
    results = results_of(rows_with(-0.02), *LANGUAGE)
    assert results["informative"] is True and results["measure"] == "loss"  # 3 points are those of accuracies
    assert conclusions(results)[0].startswith("lth - naive is -0.020 ± 0.0")
    assert results_of(rows_with(0.02), *LANGUAGE)["informative"] is False


def test_a_ladder_without_the_two_rows_has_nothing_to_conclude(results_of):
    results = results_of({"dense": NAIVE})
    assert results["informative"] is None and conclusions(results) == []
    assert label(results) == "ResNet-8 on MNIST-1D"


def test_targets_that_share_no_network_are_independent(results_of):
    gap = np.array([1.0, 2.0, 9.0, 10.0, 3.0]).repeat(2)  # of targets 1, 3, 5 ...; neighbours are alike
    values = {"lth": 0.5 + gap / 100, "naive": np.full(10, 0.5)}
    seeds = ["--seeds", *map(str, range(10)), "--pairs", "lth-naive"]
    results = results_of(values, *seeds, "--targets", "1", "3", "5", "7", "9")
    assert results["ring"] is False and results["seeds"] == [1, 3, 5, 7, 9]
    alone, shared = (interval(gap[::2], ring=ring)[1] for ring in (False, True))
    assert results["rows"]["lth"]["half_width"] == pytest.approx(alone) and alone < shared - 1
    assert difference_table(results).rows[0][1] == f"+5.00 ± {alone:.2f}"
    results["ring"] = True
    assert difference_table(results).rows[0][1] == f"+5.00 ± {shared:.2f}"
