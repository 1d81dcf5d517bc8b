"""The transfer ladder on two tiny networks."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from hf_lottery.hf.commands.common import AUTO_MODELS
from hf_lottery.hf.ladder import main as transfer_ladder
from hf_lottery.hf.ladder.cells import ROWS as ALL_ROWS
from hf_lottery.hf.ladder.cells import Cell, Ladder
from hf_lottery.hf.ladder.compute import compute
from hf_lottery.hf.ladder.results import gap_closed, interval, write_results
from hf_lottery.hf.ladder.sweep import points
from hf_lottery.hf.ladder.table import COMPARED, comparison, table

ROOT = Path(__file__).parents[3]
TINY = [
    "--config", "recipes/mnist1d/ladder_conv.yaml", "--seeds", "0", "1", "--num_train_epochs", "2",
    "--rewind", "epoch:1", "--dense_epochs", "1", "--level_epochs", "1", "--sparsity", "0.5",
    "--pruning_fraction", "0.4", "--match_batches", "4", "--max_train_samples", "300", "--max_eval_samples", "200",
    "--workers", "2", "--use_cpu", "true",
]  # fmt: skip
ROWS = ["permuted_activation", "permuted_signs", "lrr_signs", "random", "dense"]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def results(folder):
    return {path.name: json.loads(path.read_text()) for path in (folder / "cells").iterdir()}


def test_interval_by_hand():
    mean, half = interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean == 2.5
    assert half == pytest.approx(3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2, rel=1e-6)  # t(0.975, 3)


def test_gap_by_hand():
    naive, lth = np.array([10.0, 12.0, 11.0]), np.array([20.0, 22.0, 21.5])
    share, low, high = gap_closed(naive + 2.5, naive, lth)
    assert share == pytest.approx(2.5 / 10.1667, rel=1e-4) and low < share < high
    # The ends are the shares r at which the mean of gain - r * whole is just not told from 0.
    for end in (low, high):
        mean, half = interval(2.5 - end * (lth - naive))
        assert abs(mean) == pytest.approx(half, rel=1e-6)
    assert gap_closed(naive, naive, naive + np.array([5.0, -5.0, 0.0])) is None


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """A finished ladder and what it printed."""
    folder = tmp_path_factory.mktemp("ladder")
    command = [sys.executable, "recipes/transfer_ladder.py", *TINY, "--output_dir", str(folder), "--rows", *ROWS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result.stdout


def test_the_table_is_of_the_cells(ladder):
    folder, printed = ladder
    summary, cells = json.loads((folder / "ladder.json").read_text())["rows"], results(folder)
    found = {tuple(cell["cell"].rsplit("-", 1)): cell for cell in cells.values()}
    assert set(summary) == {*ROWS, "lth", "naive", "lrr", "aws"}
    for row, line in summary.items():
        values = [100 * found[row, str(seed)]["measure"] for seed in (0, 1)]
        assert line["values"] == values
        naive = [100 * found["naive", str(seed)]["measure"] for seed in (0, 1)]
        assert line["minus_naive"] == pytest.approx(np.mean(values) - np.mean(naive))
        assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in printed
    for row in ("naive", "permuted_activation", "permuted_signs"):
        assert summary[row]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert summary["lth"]["overlap"] == 1 > summary["permuted_activation"]["overlap"] > 0
    assert summary["permuted_activation"]["correlation"] > 0.1 and summary["naive"]["correlation"] is None
    assert summary["permuted_signs"]["with_needs"] > summary["naive"]["with_needs"] > summary["naive"]["seconds"] > 0
    steps = {cell["steps"] for (kind, _), cell in found.items() if not kind.startswith("search_")}
    assert len(steps) == 1  # the same budget for every row
    page = (folder / "report.html").read_text()
    assert "permuted_signs" in page and (folder / "ladder.png").stat().st_size > 5000


def test_a_finished_ladder_computes_nothing_again(ladder, run):
    folder, printed = ladder
    planned = run(transfer_ladder, *TINY, "--output_dir", folder, "--rows", *ROWS, "--plan")
    assert planned == "nothing is left to do.\n"
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    command = [sys.executable, "recipes/transfer_ladder.py", *TINY, "--output_dir", str(folder), "--rows", *ROWS]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()} == before
    assert [line for line in again.splitlines() if line.startswith("|")] == [
        line for line in printed.splitlines() if line.startswith("|")
    ]


def test_a_name_says_what_defines_a_cell():
    def digests(*more):
        ladder = Ladder.of([*TINY, "--output_dir", "x", "--rows", *ROWS, *more])
        return {cell: ladder.digest(cell) for cell in ladder.cells}

    first = digests()
    assert len(set(first.values())) == len(first)
    assert digests("--output_dir", "y", "--workers", "1") == first
    by_matching = {cell for cell, name in digests("--match_batches", "2").items() if first[cell] != name}
    assert by_matching == {Cell(row, s) for row in ("permuted_activation", "permuted_signs") for s in (0, 1)}
    by_signs = {cell.kind for cell, name in digests("--level_epochs", "2").items() if first[cell] != name}
    assert by_signs == {"search_aws", "search_lrr", "aws", "lrr", "lrr_signs", "permuted_signs"}
    assert not {cell for cell, name in digests("--learning_rate", "1e-4").items() if first[cell] == name}


def test_a_plan_writes_nothing(run, tmp_path):
    printed = run(transfer_ladder, *TINY, "--output_dir", tmp_path / "none", "--rows", *ROWS, "--plan")
    assert "24 of 24 cells are left: 6 searches and 18 final trainings" in printed
    assert not (tmp_path / "none").exists()


def test_a_sweep_is_every_combination():
    swept = ["--sparsities", "0.5", "0.6", "--rewinds", "init", "epoch:1", "--widths", "1", "2"]
    found = points([*TINY, "--output_dir", "x", *swept])
    assert len({point.ladder.digest(Cell("dense", 0)) for point in found}) == len(found) == 8
    last = found[-1]
    assert (last.name, last.stem) == (
        "sparsity=0.6, rewind=epoch:1, width=2",
        "ladder-sparsity-0.6-rewind-epoch-1-width-2",
    )
    assert (last.ladder.args.sparsity, last.ladder.args.rewind) == (0.6, "epoch:1")
    assert last.ladder.model_args.load_config().width == 2
    assert all(point.ladder.data is last.ladder.data for point in found)
    (alone,) = points([*TINY, "--output_dir", "x", "--sparsity", "0.6", "--config_overrides", "width=2"])
    assert (alone.name, alone.stem) == ("", "ladder")
    assert alone.ladder.digest(Cell("aws_signs", 1)) == last.ladder.digest(Cell("aws_signs", 1))


def test_a_network_without_a_width_cannot_be_swept():
    command = ["--config", "recipes/mnist1d/ladder_transformer.yaml", "--use_cpu", "true", "--widths", "1", "2"]
    with pytest.raises(
        SystemExit, match="widths must be those of a configuration that has a width; received one of vit"
    ):
        points(command)


def test_a_sweep_from_the_command_line(tmp_path):
    rows = ["--rows", "permuted_weight", "--output_dir", str(tmp_path), "--max_train_samples", "200"]
    command = [sys.executable, "recipes/transfer_ladder.py", *TINY, *rows, "--widths", "1", "2", "--title", "Conv"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout
    files = [str(tmp_path / f"ladder-width-{width}.json") for width in (1, 2)]
    show = [sys.executable, "-m", "hf_lottery.hf.ladder.show", *files]
    shown = subprocess.run(show, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("### Conv, width=1\n") and "2 seeds, 50.0 % sparse. recipes/transfer_ladder.py" in shown
    tables = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(tables) == 2 * 5 and set(tables) <= set(printed.splitlines())
    more = ["--compare", "minus_naive", "--picture", str(tmp_path / "both.png")]
    compared = subprocess.run([*show, *more], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "Conv, width=1" in compared and compared.strip() in printed
    assert (tmp_path / "both.png").stat().st_size > 5000
    lines = (tmp_path / "both.csv").read_text().splitlines()
    assert lines[0] == "ladder,row,minus_naive,half_width" and len(lines) == 1 + 2 * 2  # lth and permuted_weight


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_ladder_of_language_models(model, tmp_path):
    verses = [f"And the {a} of the {b} said unto the {c}." for a in WORDS for b in WORDS for c in WORDS]
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("\n".join(verses))
    (point,) = points([
        "--config", f"recipes/king_james/ladder_{model}.yaml", "--dataset_name", str(tmp_path), "--seeds", "0", "1",
        "--rows", "permuted_residual", "permuted_signs", "--num_train_epochs", "2", "--dense_epochs", "1",
        "--sparsity", "0.3", "--pruning_fraction", "0.3", "--max_train_samples", "64", "--max_eval_samples", "20",
        "--match_batches", "2", "--per_device_train_batch_size", "16", "--use_cpu", "true",
        "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    for cell in point.ladder.cells:
        compute(point.ladder, cell)
    results = write_results(point)
    assert results["measure"] == "loss" and 0 < min(results["rows"]["lth"]["values"]) < 6
    assert (
        results["rows"]["permuted_residual"]["correlation"] > 0.1 and results["rows"]["permuted_signs"]["barrier"] > -1
    )
    rows = {line[0]: line for line in table(results).rows}
    assert set(rows) == {"lth", "naive", "permuted_residual", "aws", "permuted_signs"}
    assert [len(line) for line in rows.values()] == [10] * 5


WORDS = ("king", "son", "house", "land", "day")


def test_a_comparison_leaves_out_what_no_ladder_has():
    def ladder(rows):
        found = {row: RESULT | {"values": [1.0, 2.0]} for row in rows}
        return {"title": "T", "about": {"point": ""}, "measure": "accuracy", "rows": found}

    RESULT = {"minus_naive": 1.5, "half_width": 0.5, "gap_closed": [0.5, 0.25, 0.75], "barrier": None}
    RESULT |= {"overlap": 0.25, "chance": 0.125, "correlation": 0.5, "kept_signs": None}
    both = [ladder(["naive", "lth"]), ladder(["naive", "random"])]
    assert comparison(both, "minus_naive").rows == [["lth", "+1.50 ± 0.50", "-"], ["random", "-", "+1.50 ± 0.50"]]
    assert comparison(both, "gap_closed", ["lth"]).rows == [["lth", "50 % (25 to 75)", "-"]]
    assert comparison(both, "measure", ["naive"]).rows == [["naive", "1.50 ± 0.71", "1.50 ± 0.71"]]
    assert comparison(both, "overlap", ["naive"]).rows == [["naive", "0.250 (0.125)", "0.250 (0.125)"]]
    assert comparison(both, "barrier").rows == []
    assert set(COMPARED) <= {"measure", *RESULT}


@pytest.mark.parametrize("config", sorted(ROOT.glob("recipes/*/ladder_*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_of_a_ladder(config):
    (point,) = points(["--config", str(config), "--use_cpu", "true"])
    ladder = point.ladder
    assert ladder.which.title and set(ladder.which.rows) <= ALL_ROWS.keys()
    if ladder.model_args.config_name is not None:
        assert Path(ladder.model_args.config_name).exists()
        model_config = ladder.model_args.load_config()
        has_stream = model_config.model_type in ("vit", "gpt2", "llama", "mlp_mixer")
        assert has_stream == ("permuted_residual" in ladder.which.rows)
        assert AUTO_MODELS[ladder.model_args.task].from_config(model_config).num_parameters() > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "nave"], "rows must be among dense, lth"),
        (["--seeds", "3"], "seeds must be two or more; received [3]. Each network has another as source"),
        (["--match_batches", "0"], "match_batches must be at least 1; received 0"),
    ],
)
def test_mistakes_are_told(arguments, message, capsys):
    with pytest.raises(SystemExit):
        Ladder.of([*TINY, *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_five_random_moments(ladder, tmp_path):
    whole, _ = ladder
    command = [sys.executable, "recipes/transfer_ladder.py", *TINY, "--output_dir", str(tmp_path), "--rows", *ROWS]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "start_new_session": True}
    moments, times = random.Random(3), {}
    for whom in ("launcher", "all", "worker", "all", "launcher"):
        cells = len(list(tmp_path.glob("cells/*.json")))
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(command, stderr=said, **quiet)
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("cells/*.json"))) == cells and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        assert process.poll() is None, "the ladder was finished before it was killed"
        if whom == "worker":
            children = psutil.Process(process.pid).children()
            next(child for child in children if "spawn_main" in str(child.cmdline())).kill()
        else:
            process.kill() if whom == "launcher" else os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(timeout=60) != 0
        assert ("workers must live on; one was killed" in (tmp_path / "said").read_text()) == (whom == "worker")
        time.sleep(1)  # workers that lost their parent end
        now = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*.json")}
        assert times.items() <= now.items(), "a cell was computed twice"
        times = now
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    now = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*.json")}
    assert times.items() <= now.items(), "a cell was computed twice"
    first, second, untimed = results(whole), results(tmp_path), {"cpu_seconds": 0, "seconds": 0}
    assert first.keys() == second.keys()
    for name, cell in first.items():
        assert {**cell, **untimed} == {**second[name], **untimed}
