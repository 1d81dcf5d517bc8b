"""The recipes as a user runs them, on small data."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForImageClassification, BertConfig, GPT2Config, PreTrainedTokenizerFast

from hf_lottery import Mask, SignedMask, Snapshot, Ticket, norm_parameters
from hf_lottery.hf.commands import align_mask, common, find_ticket, train_ticket
from hf_lottery.hf.ladder import sign_transfer, three_trainings
from hf_lottery.hf.tasks import data

ROOT = Path(__file__).parent.parent.parent
DIGITS = ["--config", str(ROOT / "recipes/digits/imp.yaml"), "--config_name", str(ROOT / "recipes/digits/config.json")]


def find_digits(run, folder, *more):
    return run(
        find_ticket, *DIGITS, "--num_train_epochs", 3, "--sparsity", 0.3, "--max_train_samples", 128, "--output_dir",
        folder, *more,
    )  # fmt: skip


def test_find_ticket_prints_a_table_a_picture_and_a_ticket(run, tmp_path):
    out = find_digits(run, tmp_path / "run")
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")][2:] == ["0", "1", "2"]
    assert f"picture: {tmp_path / 'run/accuracy.png'}" in out and (tmp_path / "run/accuracy.png").stat().st_size > 1000
    ticket = Ticket.from_pretrained(tmp_path / "run/ticket")
    assert ticket.mask.kept == ticket.mask.weights - round(0.3 * ticket.mask.weights)
    assert not [path for path in (tmp_path / "run/ticket").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    again = find_digits(run, tmp_path / "run")  # finished: nothing is trained again
    assert again.splitlines()[-8:] == out.splitlines()[-8:]


def test_controls_are_trained_at_every_level(run, tmp_path):
    find_digits(run, tmp_path / "run", "--controls", "reinit", "shuffled", "--rewind", "init")
    results = json.loads((tmp_path / "run/controls.json").read_text())
    assert sorted(results) == ["1:reinit", "1:shuffled", "2:reinit", "2:shuffled"]
    assert results["2:reinit"]["sparsity"] == pytest.approx(0.3, abs=1e-4)
    assert len({result["eval_loss"] for result in results.values()}) == 4


def test_train_ticket_in_all_its_modes(run, tmp_path):
    find_digits(run, tmp_path / "run")
    mask = Mask.from_pretrained(tmp_path / "run/ticket")
    losses = {}
    for init, which in (
        ("ticket", "ticket"), ("seed:7", "ticket"), ("ticket", "random"), ("ticket", "shuffled"), ("ticket", "none"),
        (f"checkpoint:{tmp_path / 'run/level-00/trained'}", "ticket"),
    ):  # fmt: skip
        folder = tmp_path / f"train-{init.split(':')[0]}-{which}"
        out = run(
            train_ticket, *DIGITS, "--num_train_epochs", 3, "--max_train_samples", 128, "--ticket",
            tmp_path / "run/ticket", "--init", init, "--mask", which, "--output_dir", folder,
        )  # fmt: skip
        assert f"init={init} mask={which} sparsity={0 if which == 'none' else 0.3:.4f}" in out
        losses[folder] = json.loads((folder / "eval_results.json").read_text())["eval_loss"]
        if which == "ticket":
            assert Mask.from_pretrained(folder) == mask
        elif which != "none":
            trained = Mask.from_pretrained(folder)
            assert trained != mask and trained.kept == mask.kept
            assert (trained.layer_sparsities() == mask.layer_sparsities()) == (which == "shuffled")
    assert len(set(losses.values())) == len(losses)


def test_the_ticket_run_repeats_the_last_level(run, tmp_path):
    """LTH: the same weights, mask, schedule and data order give the same network."""
    find_digits(run, tmp_path / "run", "--data_seed", 5)
    run(
        train_ticket, *DIGITS, "--num_train_epochs", 3, "--max_train_samples", 128, "--ticket", tmp_path / "run/ticket",
        "--output_dir", tmp_path / "again", "--data_seed", 5,
    )  # fmt: skip
    results = [
        json.loads((tmp_path / "run/lottery_state.json").read_text())["finished"][-1]["metrics"]["eval_loss"],
        json.loads((tmp_path / "again/eval_results.json").read_text())["eval_loss"],
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist1d"])
def test_the_yaml_of_each_data_set(run, tmp_path, name):
    if name == "fashion_mnist" and not Path(data.DataArguments().dataset_dir).is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    out = run(
        find_ticket, "--config", ROOT / f"recipes/{name}/imp.yaml", "--config_name",
        ROOT / f"recipes/{name}/config.json", "--output_dir", tmp_path / "run", "--num_train_epochs", 3,
        "--max_train_samples", 300, "--max_eval_samples", 200,
        *(["--levels", 1] if name == "fashion_mnist" else ["--sparsity", 0.2]),
    )  # fmt: skip
    assert "| 1     | 0.2000" in out


WORDS = ["[UNK]", "[PAD]", "[EOS]", "good", "bad", "film", "a", "the"]


@pytest.fixture
def text_model(tmp_path):
    """A folder with a tokenizer and the config of a small BERT or GPT-2."""

    def make(config):
        inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
        inner.pre_tokenizer = Whitespace()
        PreTrainedTokenizerFast(
            tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]", model_max_length=16
        ).save_pretrained(tmp_path / "model")
        config.save_pretrained(tmp_path / "model")
        rows = ["a good film,1", "bad,0", "the bad film,0", "good good good good,1"] * 8
        (tmp_path / "texts").mkdir()
        for split in ("train", "test"):
            (tmp_path / f"texts/{split}.csv").write_text("text,label\n" + "\n".join(rows))
        return tmp_path / "model", tmp_path / "texts"

    return make


BERT = BertConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=len(WORDS),
    max_position_embeddings=16,
)  # fmt: skip
GPT2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=len(WORDS), bos_token_id=2, eos_token_id=2)


@pytest.mark.parametrize(
    ("task", "config", "more"),
    [("text-classification", BERT, []), ("causal-lm", GPT2, ["--block_size", 8])],
    ids=["bert", "gpt2"],
)
@pytest.mark.parametrize("rewind", ["init", "pretrained"])
def test_texts(run, tmp_path, text_model, task, config, more, rewind):
    model, texts = text_model(config)
    source = ["--config_name", model]
    if rewind == "pretrained":
        network = common.AUTO_MODELS[task].from_config(config)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config_name", "x", "--task", "speech"], "task must be one of image-classification"),
        ([*DIGITS, "--rewind", "pretrained"], "rewind=pretrained must be given a model_name_or_path"),
        ([*DIGITS, "--controls", "luck"], "controls must be among reinit, shuffled; received 'luck'"),
        ([*DIGITS, "--sparsityy", "1"], "received sparsityy (nearest: sparsity)"),
        ([*DIGITS, "--max_train_samples", "0"], "max_train_samples must be at least 1"),
    ],
)
def test_bad_command_lines(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(find_ticket, *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init", "seed"], "init must be ticket, seed:N or checkpoint:FOLDER; received 'seed'"),
        (["--mask", "some"], "mask must be one of ticket, aligned, random, shuffled, none; received 'some'"),
    ],
)
def test_bad_training_command_lines(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(train_ticket, *DIGITS, "--ticket", "x", *arguments)
    assert message in capsys.readouterr().err


def test_missing_things_are_named(run, tmp_path):
    with pytest.raises(ValueError, match="model_name_or_path or config_name must be given"):
        run(find_ticket, "--sparsity", 0.5, "--output_dir", tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="must be a folder or the id of a repository on the Hub"):
        run(train_ticket, *DIGITS, "--ticket", tmp_path / "none", "--output_dir", tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="the checkpoint must be a folder; received nowhere"):
        train_ticket.start_weights("checkpoint:nowhere", None, None, None, 0)
    with pytest.raises(ValueError, match=r"the step to start from must lie within training; received step 400 of 12"):
        find_digits(run, tmp_path / "run", "--rewind", "step:400")
    assert not list((tmp_path / "run").iterdir())


def test_processes_that_do_not_know_of_each_other_are_stopped(monkeypatch, tmp_path):
    args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert args.world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="must know of each other; received 2 processes that each would work alone"):
        common.set_up(args)


def test_killed_for_real_and_run_again(tmp_path):
    """SIGKILL in level 2, the same command again: the ticket of a run that nobody disturbed."""

    def command(folder):
        return [
            sys.executable, "recipes/find_ticket.py", "--config", "recipes/digits/imp.yaml", "--output_dir", folder,
            "--num_train_epochs", "8", "--sparsity", "0.4", "--max_train_samples", "512", "--use_cpu", "true",
            "--disable_tqdm", "true", "--dataloader_pin_memory", "false",
            "--save_strategy", "steps", "--save_steps", "5",
        ]  # fmt: skip

    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command(str(tmp_path / "whole")), check=True, **quiet)
    process = subprocess.Popen(command(str(tmp_path / "killed")), **quiet)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("level-02/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/ticket").exists()
    subprocess.run(command(str(tmp_path / "killed")), check=True, **quiet)
    whole, killed = (Ticket.from_pretrained(tmp_path / name / "ticket") for name in ("whole", "killed"))
    assert whole.mask == killed.mask and whole.start.sha256() == killed.start.sha256()
    trained = [(tmp_path / name / "level-03/trained/model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert trained[0] == trained[1]
    assert [a["metrics"]["eval_loss"] for a in whole.info["history"]] == [
        b["metrics"]["eval_loss"] for b in killed.info["history"]
    ]


def test_align_and_train_the_permuted_mask(run, tmp_path):
    """The three trainings of the alignment paper, by hand: another seed, its dense network, the mask carried over."""
    find_digits(run, tmp_path / "a")
    common_flags = [*DIGITS, "--num_train_epochs", 3, "--max_train_samples", 128, "--ticket", tmp_path / "a/ticket"]
    run(train_ticket, *common_flags, "--init", "seed:7", "--mask", "none", "--output_dir", tmp_path / "b")
    for method in ("activation", "weight"):
        out = run(
            align_mask, *DIGITS, "--ticket", tmp_path / "a/ticket", "--target_model", tmp_path / "b", "--method",
            method,
            "--output_dir", tmp_path / method, "--match_batches", 2,
        )  # fmt: skip
        assert "overlap with the mask before" in out
        aligned, mask = (Mask.from_pretrained(tmp_path / name) for name in (method, "a/ticket"))
        assert aligned != mask and aligned.layer_sparsities() == mask.layer_sparsities()
    run(
        train_ticket, *common_flags, "--init", f"checkpoint:{tmp_path / 'b'}", "--mask", "aligned", "--aligned",
        tmp_path / "activation", "--output_dir", tmp_path / "permuted",
    )  # fmt: skip
    assert Mask.from_pretrained(tmp_path / "permuted") == Mask.from_pretrained(tmp_path / "activation")


def test_three_trainings_on_two_seeds(run, tmp_path):
    def again():
        return run(
            three_trainings, *DIGITS, "--num_train_epochs", 3, "--sparsity", 0.5, "--max_train_samples", 128,
            "--output_dir", tmp_path / "run", "--seeds", 0, 1, "--match_batches", 2,
        )  # fmt: skip

    out = again()
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert rows[2:4] == ["0", "1"] and rows[6:] == [
        "dense", "lth", "naive", "permuted", "permuted - naive", "lth - permuted"
    ]  # fmt: skip
    results = json.loads((tmp_path / "run/three_trainings.json").read_text())
    assert all(len(set(results[seed][name] for name in ("lth", "naive", "permuted"))) > 1 for seed in "01")
    assert again().splitlines()[-8:] == out.splitlines()[-8:]


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("align", ["--method", "luck"], "method must be one of activation, weight; received 'luck'"),
        ("align", ["--match_batches", "0"], "match_batches must be at least 1; received 0"),
        ("train", ["--mask", "aligned"], "aligned must be given with mask=aligned; received aligned and None"),
    ],
)
def test_bad_alignment_command_lines(run, capsys, module, arguments, message):
    recipe, more = (align_mask, ["--target_model", "x"]) if module == "align" else (train_ticket, [])
    with pytest.raises(SystemExit):
        run(recipe, *DIGITS, "--ticket", "x", *more, *arguments)
    assert message in capsys.readouterr().err


@pytest.fixture
def small_vit(tmp_path):
    """Settings of a search for signs with a small pre-norm transformer on digits."""
    sizes = {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 8, "patch_size": 4, "num_channels": 1,
    }  # fmt: skip
    (tmp_path / "vit.json").write_text(json.dumps(sizes))
    return [
        "--config", ROOT / "recipes/digits/aws.yaml", "--config_name", tmp_path / "vit.json", "--max_train_samples",
        64, "--num_train_epochs", 2, "--dense_epochs", 1, "--level_epochs", 1, "--sparsity", 0.3,
    ]  # fmt: skip


def test_signs_are_found_and_transferred_in_all_modes(run, tmp_path, small_vit):
    out = run(find_ticket, *small_vit, "--output_dir", tmp_path / "run")
    levels = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert levels == [
        "level", "-------------", "0", "1", "2", "3 (final run)", "norms towards init", "------------------", "0.00",
        "0.25", "0.50", "0.75", "1.00",
    ]  # fmt: skip
    mask = Mask.from_pretrained(tmp_path / "run/signed")
    trained = f"checkpoint:{tmp_path / 'run/level-00/trained'}"
    losses = {}
    for number, mode in enumerate((
        ["--init", "seed:7"],
        ["--init", "ticket"],
        ["--init", "seed:7", "--signs", "ticket"],
        ["--init", "seed:7", "--signs", "random"],
        ["--init", "seed:7", "--signs", "shuffled"],
        ["--init", "seed:7", "--signs", trained],
        ["--init", "seed:7", "--signs", "ticket", "--keep_norms"],
        ["--init", "seed:7", "--signs", "ticket", "--zeros", "source_median"],
        ["--init", "seed:7", "--signs", "ticket", "--zeros", "source_median", "--fold_norms"],
        ["--init", "seed:7", "--signs", "ticket", "--zeros", "std"],
        ["--init", "seed:7", "--signs", "ticket", "--magnitudes", "constant", "--zeros", "source_median"],
        ["--init", "seed:7", "--signs", "ticket", "--magnitudes", trained],
    )):  # fmt: skip
        folder = tmp_path / f"train-{number}"
        run(train_ticket, *small_vit, "--ticket", tmp_path / "run/ticket", "--output_dir", folder, *mode)
        assert Mask.from_pretrained(folder) == mask
        metrics = json.loads((folder / "eval_results.json").read_text())
        assert ("sign_agreement" in metrics) == ("--signs" in mode)
        losses[tuple(mode)] = metrics["eval_loss"]
    assert len(set(losses.values())) == len(losses)


def test_kept_norms_and_signs_are_those_of_the_ticket(run, tmp_path, small_vit):
    """The recipe against the library, at a learning rate that changes nothing."""
    run(find_ticket, *small_vit, "--output_dir", tmp_path / "run")
    ticket = Ticket.from_pretrained(tmp_path / "run/ticket")
    run(
        train_ticket, *small_vit, "--ticket", tmp_path / "run/ticket", "--output_dir", tmp_path / "t", "--init",
        "seed:7", "--signs", "ticket", "--keep_norms", "--learning_rate", 0, "--weight_decay", 0,
    )  # fmt: skip
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "t")
    for name, parameter in norm_parameters(model).items():
        assert torch.equal(parameter, ticket.start.tensors[name])
    signed = SignedMask.from_pretrained(tmp_path / "run/signed")
    assert signed.agreement(model).overall == 1


def test_the_experiment_of_the_sign_paper(run, tmp_path, small_vit):
    def again():
        return run(sign_transfer, *small_vit, "--final_run", "false", "--output_dir", tmp_path / "run", "--seeds", 0, 1)

    out = again()
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert rows[2:13] == list(sign_transfer.TRAININGS)
    assert "lrr_barrier - aws_barrier" in rows
    results = json.loads((tmp_path / "run/seed-1.json").read_text())
    assert results["aws_kept_signs"] > 90  # a few steps flip few signs
    before = (tmp_path / "run/seed-1.json").stat().st_mtime_ns
    assert again().splitlines()[-12:] == out.splitlines()[-12:]
    assert (tmp_path / "run/seed-1.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--signs", "some"],
            "signs must be one of none, ticket, shuffled, random, checkpoint:FOLDER; received 'some'",
        ),
        (["--signs", "checkpoint:"], "signs must be one of"),
        (["--signs", "ticket", "--magnitudes", "big"], "magnitudes must be one of init, constant, checkpoint:FOLDER"),
        (["--keep_norms"], "keep_norms must come with signs; received True"),
        (["--zeros", "std"], "zeros must come with signs; received 'std'"),
        (["--signs", "ticket", "--mask", "random"], "signs must come with mask=ticket, which they are of"),
        (["--signs", "ticket", "--zeros", "drop"], "zeros must be one of keep, std, source_median; received 'drop'"),
    ],
)
def test_bad_sign_command_lines(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(train_ticket, *DIGITS, "--ticket", "x", *arguments)
    assert message in capsys.readouterr().err


def test_find_and_train_by_reference_through_the_hub(run, hub, tmp_path):
    find_digits(
        run, tmp_path / "run", "--rewind", "init", "--rewind_by_reference", "--push_to_hub", "true", "--hub_model_id",
        "alice/found",
    )  # fmt: skip
    assert "rewind.safetensors" not in hub.repos["alice/found"].files("main")
    assert {"level-00", "level-01", "level-02"} <= {ref.rpartition("/")[2] for ref in hub.repos["alice/found"].refs}
    run(
        train_ticket, *DIGITS, "--num_train_epochs", 3, "--max_train_samples", 128, "--ticket", "alice/found",
        "--output_dir", tmp_path / "again",
    )  # fmt: skip
    assert Mask.from_pretrained(tmp_path / "again") == Mask.from_pretrained("alice/found")


@pytest.mark.parametrize(
    "recipe", ["find_ticket", "train_ticket", "align_mask", "connectivity", "three_trainings", "sign_transfer"]
)
def test_every_recipe_has_help(monkeypatch, capsys, recipe):
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(recipe).main()
    assert stopped.value.code == 0
    assert "--dataset_train_split" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["imp", "aws"])
def test_a_plan_leaves_no_trace_and_comes_true(run, tmp_path, name):
    flags = [
        "--config", ROOT / f"recipes/digits/{name}.yaml", "--config_name", ROOT / "recipes/digits/config.json",
        "--num_train_epochs", 3, "--sparsity", 0.3, "--max_train_samples", 128, "--output_dir", tmp_path / "run",
        *(["--dense_epochs", 2, "--level_epochs", 1] if name == "aws" else []),
    ]  # fmt: skip
    out = run(find_ticket, *flags, "--plan")
    assert not list(tmp_path.iterdir()) and "nothing was trained, nothing was written" in out
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
    steps = next(row[2] for row in cells if row[0] == "all")
    number, unit = next(row[1] for row in cells if row[0] == "all" and len(row) == 2).split()
    run(find_ticket, *flags)
    files = {path.stat().st_ino: path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(sum(files.values()), rel=0.1)
    finished = json.loads((tmp_path / "run/lottery_state.json").read_text())["finished"]
    assert int(steps) == sum(level["steps"] for level in finished)


def test_a_plan_makes_no_repository(run, hub, tmp_path):
    out = find_digits(
        run, tmp_path / "run", "--plan", "--push_to_hub", "true", "--hub_model_id", "alice/planned", "--controls",
        "shuffled", "--plan_shards", 2, "--plan_matching", "false",
    )  # fmt: skip
    assert "alice/planned" not in hub.repos and not list(tmp_path.iterdir())
    assert "the controls are not counted" in out and "Aligning" not in out


def test_a_bad_plan(run, capsys):
    with pytest.raises(SystemExit):
        run(find_ticket, *DIGITS, "--plan", "--plan_shards", 0)
    assert "plan_shards must be at least 1; received 0" in capsys.readouterr().err


def test_a_configuration_can_be_overridden(tmp_path):
    named = {"config_name": str(ROOT / "recipes/mnist1d/resnet8_1d.json")}
    assert common.ModelArguments(**named).load_config().width == 1
    config = common.ModelArguments(**named, config_overrides="width=4,num_channels=3").load_config(num_channels=1)
    assert (config.width, config.num_channels) == (4, 3)
    with pytest.raises(ValueError, match="key depth isn't in the original config"):
        common.ModelArguments(**named, config_overrides="depth=4").load_config()
    with pytest.raises(ValueError, match="config_overrides must go with config_name; received model_name_or_path"):
        common.ModelArguments(model_name_or_path=str(tmp_path), config_overrides="width=4")
