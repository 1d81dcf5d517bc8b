"""Ladders from the command line: workers, interruptions, plans, and the experiments of the papers."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from small_ladders import BRIEF, CONV, ROOT, compute_all

from hf_lottery.hf.commands.main import main
from hf_lottery.hf.ladder import main as transfer_ladder
from hf_lottery.hf.ladder import show
from hf_lottery.hf.ladder.results import write_results
from hf_lottery.hf.ladder.rows import ROWS as ALL_ROWS
from hf_lottery.hf.ladder.sweep import points
from hf_lottery.hf.ladder.table import ladder_table
from hf_lottery.hf.trainers.arguments import LotteryArguments

TINY = [
    *CONV, "--sparsity", "0.5", "--pruning_fraction", "0.4", "--match_batches", "4", "--max_train_samples", "300",
    "--max_eval_samples", "200", "--workers", "2",
]  # fmt: skip
ROWS = ["permuted_activation", "permuted_signs", "lrr_signs", "random", "dense"]
WORDS = ("king", "son", "house", "land", "day")


def results(folder):
    return {path.name: json.loads(path.read_text()) for path in (folder / "cells").iterdir()}


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("cells/*.json")}


def launch(folder, *arguments):
    """Run the ladder in a process of its own, and return what it printed."""
    command = [sys.executable, "recipes/transfer_ladder.py", *arguments, "--output_dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table_lines(text):
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """A finished ladder and what it printed."""
    folder = tmp_path_factory.mktemp("ladder")
    return folder, launch(folder, *TINY, "--rows", *ROWS)


def test_a_finished_ladder_is_shown_without_workers(run, computed, monkeypatch):
    """The plan says that nothing is left, and the same command prints the table at once."""
    command = [*CONV, "--output_dir", computed.ladder.folder, "--rows", *computed.ladder.which.rows]
    assert run(transfer_ladder, *command, "--plan") == "Nothing is left to do.\n"
    before = times(computed.ladder.folder)
    monkeypatch.setattr("hf_lottery.hf.ladder.workers.ProcessPoolExecutor", None)
    printed = run(transfer_ladder, *command, "--pairs", "lth-naive")
    rows = [line.split("|")[1].strip() for line in table_lines(printed)]
    assert rows[2:] == [*computed.ladder.which.rows, "paired difference", rows[-2], "lth - naive"]
    assert times(computed.ladder.folder) == before
    page = (computed.ladder.folder / "report.html").read_text()
    assert "permuted_activation" in page and (computed.ladder.folder / "ladder.png").stat().st_size > 5000


def test_a_ladder_is_one_process(run, monkeypatch):
    monkeypatch.setattr(LotteryArguments, "world_size", 2)
    with pytest.raises(SystemExit, match="a ladder must be launched as one process, .* received 2. Use --workers"):
        run(transfer_ladder, *CONV)


def test_help_tells_what_every_row_is(capsys):
    assert main(["ladder", "--help"]) == 0
    told = "".join(capsys.readouterr().out.split())  # lines may break anywhere
    assert all("".join(f"{name}: {row.about}".split()) in told for name, row in ALL_ROWS.items())


@pytest.mark.slow
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
    steps = {cell["steps"] for (kind, _), cell in found.items() if not kind.startswith(("search_", "dense"))}
    assert len(steps) == 1  # the same budget for every row that reuses something


@pytest.mark.slow
def test_a_finished_ladder_computes_nothing_again(ladder):
    folder, printed = ladder
    before = times(folder)
    assert table_lines(launch(folder, *TINY, "--rows", *ROWS)) == table_lines(printed)
    assert times(folder) == before


@pytest.mark.slow
def test_a_sweep_from_the_command_line(tmp_path, capsys):
    printed = launch(tmp_path, *TINY, "--rows", "permuted_weight", "--widths", "1", "2", "--title", "Conv")
    files = [str(tmp_path / f"ladder-width-{width}.json") for width in (1, 2)]
    show.main(files)
    shown = capsys.readouterr().out
    assert shown.startswith("### Conv, width=1\n") and "2 seeds, 50.0 % sparse. recipes/transfer_ladder.py" in shown
    assert len(table_lines(shown)) == 2 * 5 and set(table_lines(shown)) <= set(printed.splitlines())
    show.main([*files, "--compare", "minus_naive"])
    compared = capsys.readouterr().out
    assert "| width=1 " in compared and compared.strip() in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "more", "searches"),
    [
        (
            "recipes/mnist1d/sign_transfer.yaml",
            ["--sparsities", "0.3", "--lengths", "1", "--config_name", "recipes/mnist1d/resnet8_1d.json"],
            {"lrr", "aws"},
        ),
        (
            "recipes/fashion_mnist/rebasin.yaml",
            ["--dataset_name", "mnist1d", "--config_name", "recipes/mnist1d/config.json"],
            {"imp"},
        ),
    ],
    ids=["signs", "alignment"],
)
def test_the_experiments_of_the_papers(run, tmp_path, config, more, searches):
    command = ["--config", config, *BRIEF, *more, "--output_dir", str(tmp_path)]
    (point,) = points(command)
    compute_all(point.ladder)
    printed, which = run(transfer_ladder, *command), point.ladder.which
    rows = [line.split("|")[1].strip() for line in table_lines(printed)]
    assert rows[2 : 2 + len(which.rows)] == which.rows
    assert rows[-len(which.pairs) :] == [pair.replace("-", " - ") for pair in which.pairs]
    found = results(tmp_path).values()
    assert {cell["cell"][7:-2] for cell in found if cell["cell"].startswith("search_")} == searches
    assert {cell["cell"] for cell in found} == {str(cell) for cell in point.ladder.cells}


@pytest.mark.parametrize("model", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_ladder_of_language_models(model, tmp_path):
    rows = ["permuted_activation_residual", *(["permuted_signs"] if model == "llama" else [])]
    verses = [f"And the {a} of the {b} said unto the {c}." for a in WORDS for b in WORDS for c in WORDS]
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("\n".join(verses))
    (point,) = points([
        "--config", f"recipes/king_james/ladder_{model}.yaml", "--dataset_name", str(tmp_path), *BRIEF, "--rows", *rows,
        "--max_train_samples", "32", "--max_eval_samples", "20", "--per_device_train_batch_size", "16",
        "--output_dir", str(tmp_path / "out"), *(["--config_overrides", "n_layer=1"] if model == "gpt2" else []),
    ])  # fmt: skip
    compute_all(point.ladder)
    results = write_results(point)
    assert results["measure"] == "loss" and 0 < min(results["rows"]["lth"]["values"]) < 6
    assert results["rows"]["permuted_activation_residual"]["correlation"] > 0.1
    assert all(results["rows"][row]["barrier"] > -1 for row in rows)
    table = ladder_table(results)
    assert {line[0] for line in table.rows} >= {"lth", "naive", *rows}
    assert {len(line) for line in table.rows} == {len(table.header)}


@pytest.mark.slow
def test_a_pilot_chooses_before_the_ladder_is_computed(run, tmp_path):
    """On digits, with a network that learns them in a few epochs."""
    scan = [
        *CONV, "--dataset_name", "digits", "--config_name", "recipes/digits/lenet.json", "--max_train_samples", "1000",
        "--rows", "permuted_weight", "--num_train_epochs", "4", "--pruning_fraction", "0.5", "--scan", "0.5", "0.75",
        "0.97", "--pilot_seeds", "7", "8", "--converged_within", "0.1", "--max_loss", "0.5", "--workers", "2",
    ]  # fmt: skip
    assert "The pilot comes on top" in run(transfer_ladder, *scan, "--output_dir", tmp_path, "--plan")
    printed = launch(tmp_path, *scan)
    (file,) = tmp_path.glob("ladder-sparsity-*.json")
    pilot, found = (json.loads(path.read_text()) for path in (tmp_path / "pilot.json", file))
    gaps = {one["sparsity"]: one["gap"] for one in pilot["scan"]}
    assert found["pilot"] == pilot and gaps[pilot["sparsity"]] == max(gaps.values()) > 0.1
    assert [*gaps] == pytest.approx([0.5, 0.75, 0.97]) and found["seeds"] == [0, 1]
    assert found["rows"]["lth"]["sparsity"] == pytest.approx(pilot["sparsity"], abs=1e-3)
    cells = [cell["cell"] for cell in results(tmp_path).values()]
    tested = {"search_imp", "lth", "naive", "permuted_weight"}
    assert {name for name in cells if name[-2:] in ("-0", "-1")} == {
        f"{kind}-{seed}" for kind in tested for seed in "01"
    }
    assert cells.count("search_imp-7") == 1  # for all scanned sparsities
    assert "| used |" in printed and "lth - naive is" in printed
    assert run(transfer_ladder, *scan, "--output_dir", tmp_path, "--plan") == "Nothing is left to do.\n"


def kill(process, whom):
    """Kill the launcher, one worker, or all of them."""
    if whom == "worker":
        children = psutil.Process(process.pid).children()
        next(child for child in children if "spawn_main" in str(child.cmdline())).kill()
    elif whom == "launcher":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_killed_at_five_random_moments(ladder, tmp_path):
    whole, _ = ladder
    command = [sys.executable, "recipes/transfer_ladder.py", *TINY, "--output_dir", str(tmp_path), "--rows", *ROWS]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "start_new_session": True}
    moments, known = random.Random(3), {}
    for whom in ("launcher", "all", "worker", "all", "launcher"):
        cells = len(times(tmp_path))
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(command, stderr=said, **quiet)
        deadline = time.monotonic() + 120
        while len(times(tmp_path)) == cells and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        assert process.poll() is None, "the ladder was finished before it was killed"
        kill(process, whom)
        assert process.wait(timeout=60) != 0
        assert ("a worker was killed, perhaps" in (tmp_path / "said").read_text()) == (whom == "worker")
        time.sleep(1)  # workers that lost their parent end
        now = times(tmp_path)
        assert known.items() <= now.items(), "a cell was computed twice"
        known = now
    launch(tmp_path, *TINY, "--rows", *ROWS)
    assert known.items() <= times(tmp_path).items(), "a cell was computed twice"
    first, second, untimed = results(whole), results(tmp_path), {"cpu_seconds": 0, "seconds": 0, "match_seconds": 0}
    assert first.keys() == second.keys()
    for name, cell in first.items():
        assert {**cell, **untimed} == {**second[name], **untimed}


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_says_one_line(tmp_path):
    command = [sys.executable, "-m", "hf_lottery", "ladder", *TINY, "--output_dir", str(tmp_path), "--rows", *ROWS]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet) as process:
        deadline, workers = time.monotonic() + 120, []
        while len(workers) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
            workers = [c for c in psutil.Process(process.pid).children() if "spawn_main" in str(c.cmdline())]
        time.sleep(2)  # in the middle of their imports
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the command
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    line = "hf-lottery ladder: interrupted. What is finished is kept. The same command computes what is missing.\n"
    assert [text for text in said.splitlines(keepends=True) if "%|" not in text] == [line]
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
