"""find_ticket: the search and what it leaves, controls, plans, texts, and mistakes on the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from recipe_runs import BERT, DIGITS, GPT2, ROOT, SEARCH, text_model

from hf_lottery import Snapshot, Ticket
from hf_lottery.hf.commands import find_ticket
from hf_lottery.hf.tasks.data import DataArguments
from hf_lottery.hf.tasks.models import AUTO_MODELS


def test_a_search_prints_a_table_a_picture_and_a_ticket(run, digits_search):
    folder, out = digits_search
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")][2:] == ["0", "1", "2"]
    assert f"picture: {folder / 'accuracy.png'}" in out and (folder / "accuracy.png").stat().st_size > 1000
    ticket = Ticket.from_pretrained(folder / "ticket")
    assert ticket.mask.kept == ticket.mask.weights - round(0.3 * ticket.mask.weights)
    assert not [path for path in (folder / "ticket").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    again = run(find_ticket, *SEARCH, "--output_dir", folder)  # finished: nothing is trained
    assert again.splitlines()[-8:] == out.splitlines()[-8:]


@pytest.mark.parametrize(
    "names", [["shuffled"], pytest.param(["reinit", "shuffled"], marks=pytest.mark.slow)], ids="-".join
)
def test_controls_are_trained_at_every_level(run, digits_search, tmp_path, names):
    folder = tmp_path / "run"
    shutil.copytree(digits_search[0], folder)
    run(find_ticket, *SEARCH, "--output_dir", folder, "--controls", *names)
    results = json.loads((folder / "controls.json").read_text())
    assert sorted(results) == [f"{level}:{name}" for level in (1, 2) for name in names]
    assert results["2:shuffled"]["sparsity"] == pytest.approx(0.3, abs=1e-4)
    assert len({result["eval_loss"] for result in results.values()}) == len(results)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion_mnist", "mnist1d"])
def test_the_configuration_of_each_data_set(run, tmp_path, name):
    if name == "fashion_mnist" and not Path(DataArguments().dataset_dir).is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    out = run(
        find_ticket, "--config", ROOT / f"recipes/{name}/imp.yaml", "--config_name",
        ROOT / f"recipes/{name}/config.json", "--output_dir", tmp_path / "run", "--num_train_epochs", 3,
        "--max_train_samples", 300, "--max_eval_samples", 200,
        *(["--levels", 1] if name == "fashion_mnist" else ["--sparsity", 0.2]),
    )  # fmt: skip
    assert "| 1     | 20.00%" in out


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("rewind", "task", "config", "more"),
    [
        pytest.param("pretrained", "text-classification", BERT, [], id="pretrained-bert"),
        pytest.param("pretrained", "causal-lm", GPT2, ["--block_size", 8], id="pretrained-gpt2", marks=SLOW),
        pytest.param("init", "text-classification", BERT, [], id="init-bert", marks=SLOW),
        pytest.param("init", "causal-lm", GPT2, ["--block_size", 8], id="init-gpt2", marks=SLOW),
    ],
)
def test_texts(run, tmp_path, rewind, task, config, more):
    model, texts = text_model(tmp_path, config)
    source = ["--config_name", model]
    if rewind == "pretrained":
        network = AUTO_MODELS[task].from_config(config)
        network.save_pretrained(model)
        source = ["--model_name_or_path", model]
    out = run(
        find_ticket, "--task", task, *source, "--dataset_name", texts, "--levels", 1, "--num_train_epochs", 1,
        "--rewind", rewind, "--output_dir", tmp_path / "run", *more,
    )  # fmt: skip
    assert [line.split()[1] for line in out.splitlines() if line.startswith("|")][2:] == ["0", "1"]
    if rewind == "pretrained":
        start = Snapshot.load(tmp_path / "run/level-01/rewind.safetensors").tensors
        for name, tensor in network.base_model.state_dict(prefix=network.base_model_prefix + ".").items():
            assert torch.equal(start[name], tensor)


@pytest.mark.parametrize("name", ["imp", pytest.param("aws", marks=SLOW)])
def test_a_plan_leaves_no_trace_and_comes_true(run, tmp_path, name):
    flags = [
        "--config", ROOT / f"recipes/digits/{name}.yaml", "--config_name", ROOT / "recipes/digits/config.json",
        "--num_train_epochs", 3, "--sparsity", 0.3, "--max_train_samples", 128, "--per_device_train_batch_size", 32,
        *(["--dense_epochs", 2, "--level_epochs", 1] if name == "aws" else []),
    ]  # fmt: skip
    folder = tmp_path / "run"
    out = run(find_ticket, *flags, "--output_dir", folder, "--plan")
    assert not folder.exists() and "nothing was trained, nothing was written" in out
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
    steps = next(row[2] for row in cells if row[0] == "all")
    number, unit = next(row[1] for row in cells if row[0] == "all" and len(row) == 2).split()
    run(find_ticket, *flags, "--output_dir", folder)
    files = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(sum(files.values()), rel=0.1)
    finished = json.loads((folder / "lottery_state.json").read_text())["finished"]
    assert int(steps) == sum(level["steps"] for level in finished)


def test_a_plan_makes_no_repository(run, hub, tmp_path):
    out = run(
        find_ticket, *SEARCH, "--output_dir", tmp_path / "run", "--plan", "--push_to_hub", "true", "--hub_model_id",
        "alice/planned", "--controls", "shuffled", "--compare", 3, "--plan_shards", 2, "--plan_matching", "false",
    )  # fmt: skip
    assert "alice/planned" not in hub.repos and not list(tmp_path.iterdir())
    assert "it trains 12 more networks" in out and "the controls are not counted" in out and "Aligning" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config_name", "x", "--task", "speech"], "task must be one of image-classification"),
        ([*DIGITS, "--rewind", "pretrained"], "rewind=pretrained must be given a model_name_or_path"),
        ([*DIGITS, "--controls", "luck"], "controls must be among reinit, shuffled; received 'luck'"),
        ([*DIGITS, "--compare", "1"], "compare must be 0, or at least 2 for an interval; received 1"),
        ([*DIGITS, "--sparsityy", "1"], "received sparsityy (nearest: sparsity)"),
        ([*DIGITS, "--max_train_samples", "0"], "max_train_samples must be at least 1"),
        ([*DIGITS, "--plan", "--plan_shards", "0"], "plan_shards must be at least 1; received 0"),
    ],
)
def test_bad_command_lines(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(find_ticket, *arguments)
    assert message in capsys.readouterr().err


def test_what_is_missing_is_named(run, tmp_path):
    with pytest.raises(
        SystemExit, match="^hf-lottery find: model_name_or_path, config_name or model_type must be given"
    ):
        run(find_ticket, "--sparsity", 0.5, "--output_dir", tmp_path / "run")
    with pytest.raises(SystemExit, match="find: the step to start .* within training; received step 400 of 8"):
        run(find_ticket, *SEARCH, "--output_dir", tmp_path / "run", "--rewind", "step:400")
    assert not list((tmp_path / "run").iterdir())
