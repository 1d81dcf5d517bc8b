"""hf-lottery levels: a ticket against its controls over several runs."""

import json
import re

import pytest

from hf_lottery.hf.commands.main import main


@pytest.fixture
def runs(tmp_path):
    """Two runs of two levels, with the control ``shuffled`` at the second."""
    folders = []
    for seed in range(2):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        levels = [
            {"sparsity": sparsity, "metrics": {"eval_accuracy": accuracy + seed / 50}}
            for sparsity, accuracy in ((0.0, 0.9), (0.2, 0.8))
        ]
        (folder / "lottery_state.json").write_text(json.dumps({"finished": levels}))
        (folder / "controls.json").write_text(json.dumps({"1:shuffled": {"sparsity": 0.2, "eval_accuracy": 0.5}}))
        folders.append(folder)
    return folders


def test_a_table_and_a_picture(runs, tmp_path, capsys):
    picture = tmp_path / "levels.png"
    assert main(["levels", *map(str, runs), "--picture", str(picture)]) == 0
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["kept", "ticket", "shuffled"]
    assert lines[2:] == [["100.00 %", "91.00 ± 1.41", "-"], ["80.00 %", "81.00 ± 1.41", "50.00 ± 0.00"]]
    assert picture.stat().st_size > 1000 and "shuffled,0.2,1,0.5" in picture.with_suffix(".csv").read_text()


def test_intervals_and_paired_differences(runs, capsys):
    assert main(["levels", *map(str, runs), "--intervals"]) == 0
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["kept", "ticket", "shuffled", "ticket minus it"]
    assert lines[2] == ["100.00 %", "91.0 ± 12.7", "-", "-"]
    assert lines[3] == ["80.00 %", "81.0 ± 12.7", "50.0 ± 0.0", "+31.0 ± 12.7"]


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ([], ["80.00 %", "82.00", "50.00"]),
        (["--intervals"], ["80.00 %", "82.0", "50.0", "+32.0"]),
    ],
)
def test_the_value_of_one_run_stands_alone(runs, options, last, capsys):
    assert main(["levels", str(runs[1]), *options]) == 0
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "a run must be a folder with lottery_state.json"),
        (["seed-0", "--measure", "eval_loss"], "measure must be a metric .* received 'eval_loss'. There are: eval_acc"),
    ],
)
@pytest.mark.usefixtures("runs")
def test_what_is_missing_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["levels", *arguments]) == 1
    assert re.match(f"hf-lottery levels: {message}", capsys.readouterr().err)
