"""The pilot of a ladder: how long to train, and the sparsity at which masks differ."""

import json

import pytest
from small_ladders import CONV

from hf_lottery.hf.ladder.cells import Ladder
from hf_lottery.hf.ladder.pilot import pilot_tables, settle
from hf_lottery.hf.ladder.sweep import points

DENSE = {2: 0.5, 4: 0.7, 8: 0.74, 16: 0.742}  # epochs -> accuracy
# Sparsity -> how much lth loses to dense, and gains on naive.
SCANNED = {0.3: (0.0, 0.02), 0.51: (0.02, 0.1), 0.657: (0.025, 0.08), 0.7: (0.05, 0.15)}
SCAN = [*CONV, "--pruning_fraction", "0.3", "--scan", "0.3", "0.5", "0.65", "0.7", "--pilot_seeds", "7", "8"]


@pytest.fixture
def settled(tmp_path):
    """A function that settles a command, with cells that have these numbers."""
    ran = []

    def settle_with(*more, dense=DENSE, scanned=SCANNED, sign=1):
        def run(command):
            ran.append(command)
            for point in points(command):
                write(point.ladder)

        def write(ladder):
            sparsity = ladder.args.get_sparsities()[ladder.level]
            loss, gain = next(value for known, value in scanned.items() if abs(known - sparsity) < 1e-3)
            for cell in filter(ladder.is_row, ladder.cells):
                below = {"dense": 0, "lth": loss, "naive": loss + gain}[cell.kind]
                measure = dense[ladder.args.num_train_epochs] - below + (0.001 if cell.seed == 7 else -0.001)
                ladder.file(cell).parent.mkdir(exist_ok=True, parents=True)
                ladder.file(cell).write_text(json.dumps({"measure": sign * measure}))

        command, found = settle([*SCAN, "--output_dir", str(tmp_path), *more], run)
        assert json.loads((tmp_path / "pilot.json").read_text()) == json.loads(json.dumps(found))
        return command, found, ran

    return settle_with


def test_epochs_and_sparsity_are_those_of_the_largest_gap(settled):
    command, found, ran = settled("--targets", "1", "--rows", "random", "--pairs", "lth-random")
    assert found["epochs"] == 8 and found["sparsity"] == pytest.approx(0.51)
    assert [epochs for epochs, _ in found["dense"]] == [2, 4, 8, 16]
    assert found["dense"][0][1] == pytest.approx([0.501, 0.499])
    assert [one["sparsity"] for one in found["scan"]] == pytest.approx([0.3, 0.51, 0.657, 0.7])
    assert found["scan"][1] == pytest.approx(
        {"sparsity": 0.51, "dense": 0.74, "lth": 0.72, "naive": 0.62, "gap": 0.1, "half_width": 0, "loss": 0.02}
    )
    for given in ran:  # with the networks of the pilot alone
        ladder = points(given)[0].ladder
        assert {cell.seed for cell in ladder.cells} == {7, 8} and "random" not in ladder.which.rows
    (point,) = points(command)
    assert point.ladder.args.num_train_epochs == 8 and point.ladder.which.pairs == ["lth-random"]
    assert point.ladder.targets == [1] and set(point.ladder.which.rows) == {"lth", "random", "naive"}
    pilot = points(ran[-1])[1].ladder
    whole = point.ladder.args.get_sparsities()
    assert len(whole) == 3 and whole == pilot.args.get_sparsities()[: pilot.level + 1]  # by the same levels
    lengths, scan = pilot_tables(found)
    assert [row[-1] for row in lengths.rows] == ["", "", "used", ""]
    assert scan.rows[1] == ["0.510", "0.7400", "0.7200", "0.6200", "+0.1000 ± 0.0000", "used"]


@pytest.mark.parametrize(
    ("within", "dense", "epochs", "measured"),
    [
        ("0.01", {2: 0.7, 4: 0.709}, 2, 2),
        ("0.01", {2: 0.7, 4: 0.6}, 2, 2),
        ("0.01", {2: 0.1, 4: 0.3, 8: 0.5, 16: 0.7}, 16, 4),
        ("0.05", DENSE, 4, 3),
    ],
)
def test_epochs_are_doubled_until_that_no_longer_helps(settled, within, dense, epochs, measured):
    _, found, _ = settled("--converged_within", within, dense=dense)
    assert found["epochs"] == epochs and len(found["dense"]) == measured


def test_the_pilot_knows_that_a_loss_should_be_small(settled):
    _, found, _ = settled("--task", "causal-lm", "--config_name", "recipes/king_james/gpt2", sign=-1)
    assert found["epochs"] == 8 and found["sparsity"] == pytest.approx(0.51)
    assert found["scan"][1]["gap"] == pytest.approx(0.1) and found["scan"][1]["loss"] == pytest.approx(0.02)


@pytest.mark.parametrize(("most", "sparsity"), [("0.06", 0.7), ("0.022", 0.51), ("0.01", 0.3)])
def test_a_ticket_must_not_lose_too_much(settled, most, sparsity):
    assert settled("--max_loss", most)[1]["sparsity"] == pytest.approx(sparsity)


def test_without_a_gap_there_is_no_ladder(settled, tmp_path):
    with pytest.raises(ValueError, match="lth must be above naive at a scanned sparsity; received 0.300, 0.510"):
        settled(scanned={sparsity: (0.0, -0.01) for sparsity in SCANNED})
    assert json.loads((tmp_path / "pilot.json").read_text())["sparsity"] is None


def test_networks_that_choose_are_not_those_that_test(settled, capsys):
    with pytest.raises(ValueError, match="pilot_seeds must be other seeds than those of the ladder; received 1 in"):
        settled("--pilot_seeds", "1", "2")
    with pytest.raises(SystemExit):
        Ladder.of([*SCAN, "--pilot_seeds", "7"])
    assert "pilot_seeds must be two or more, each once; received [7]" in capsys.readouterr().err
