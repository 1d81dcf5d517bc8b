"""The command line as a new user meets it: what it lists, what it says in one line, and its exit statuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from recipe_runs import BERT, DIGITS, QUICK, ROOT, SMALL, write_tokenizer
from transformers.utils import logging

from hf_lottery import Mask, __version__
from hf_lottery.hf.commands import find_ticket
from hf_lottery.hf.commands.catalogue import CATALOGUE
from hf_lottery.hf.commands.main import main

BUILT_IN = ["--dataset_name", "digits", "--model_type", "lenet", "--sparsity", "0.5", *QUICK]


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Run the command line in a folder of its own; return its status, standard output and standard error."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return (status, *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    Mask({"a": torch.tensor([True, False])}).save_pretrained(tmp_path / "mask")
    verbosity = logging.get_verbosity()
    yield run
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def test_the_overview_lists_every_command_in_one_line(call):
    status, out, _ = call("--help")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and "COMMAND" not in line]
    assert status == 0 and listed == [*CATALOGUE]
    assert call() == (0, out, "")
    assert call("--version") == (0, f"hf-lottery {__version__}\n", "")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_help_shows_an_example_and_the_examples_are_right(call, name):
    status, out, _ = call(name, "--help")
    assert status == 0 and f"hf-lottery {name} {CATALOGUE[name].examples[0].split()[0]}" in out
    for example in CATALOGUE[name].examples:
        for flag in [word for word in example.split() if word.startswith("--")]:
            assert flag in out
    assert out.startswith(f"usage: hf-lottery {name} ") and ("--json" in out) == (name not in ("show", "completion"))


@pytest.mark.parametrize("name", ["find", "train", "align", "connect", "ladder"])
def test_the_help_shows_the_options_of_the_library_before_those_of_the_trainer(call, name):
    _, out, _ = call(name, "--help")
    ours, others = out.split("other options of the Trainer of transformers:")
    for flag in ("--dataset_name", "--sparsity", "--resume_with_other", "--output_dir", "--learning_rate", "--config"):
        assert f"  {flag} " in ours and f"  {flag} " not in others
    assert "  --weight_decay " in others and "  --weight_decay " not in ours
    assert f"Default: outputs/{name}." in " ".join(ours.split())


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["fnd"], 2, "hf-lottery: the command must be known; received fnd .nearest: find.. See hf-lottery --help."),
        (["find", "--sparsty", "0.5"], 2, "find: the command line must hold known keys; received sparsty .nearest: sp"),
        (["find", "--sparsity", "much"], 2, "find: argument --sparsity: invalid float value: 'much'."),
        (["find", "--sparsity", "1.5"], 2, "find: sparsity must be "),
        (["find", "--seed", "-1"], 2, "find: seed must be from 0 to 4294967295; received -1. Pass 0"),
        (["find", "--per_device_train_batch_size", "0"], 2, "per_device_train_batch_size must be at least 1; received"),
        (["find", "--split_seed", "-1"], 2, "find: split_seed must be from 0 to 4294967295; received -1"),
        (["find", *BUILT_IN, "--config_overrides", "width=-1"], 1, "a LeNetConfig that fails with Runtime.*-300"),
        (["find", *BUILT_IN, "--model_type", "clip"], 1, r"CLIPFor.* one sample of pixel_values \[1, 1, 8, 8\].*8.8"),
        (["find", "--config", "no.yaml"], 2, "find: --config must name a YAML file; received no.yaml, which does not"),
        (["find", *BUILT_IN, "--model_type", "lenett"], 2, "received 'lenett'. Did you mean lenet?"),
        (["find", *BUILT_IN, "--model_type", "bert"], 1, "one for image-classification; .* --task text-classification"),
        (["find", *BUILT_IN, "--config_overrides", "nosuch=1"], 1, "fields of LeNetConfig, .* 'nosuch=1': key nosuch"),
        (["find", *BUILT_IN, "--config_overrides", "width"], 1, "fields of LeNetConfig, .* received 'width': "),
        (["find", *BUILT_IN, "--config_name", "x.json"], 2, "model_type must name the only network; received 'x.json'"),
        (["find", "--sparsity", "0.5"], 1, "model_name_or_path, config_name or model_type must be given"),
        (["find", *BUILT_IN, "--dataset_name", "digit"], 1, "dataset_name must be .*'digit'. Did you mean digits?"),
        (["find", *BUILT_IN, "--dataset_name", "me/data"], 1, "received 'me/data'. .*(offline|HF_HUB_OFFLINE)"),
        (["find", *BUILT_IN, "--dataset_name", "./data"], 1, "dataset_name must be a folder that exists"),
        (
            ["find", *BUILT_IN, "--dataset_name", "mnist1d"],
            1,
            "mnist1d must be installed .*pip install hf-lottery.recipes",
        ),
        (["find", *BUILT_IN, "--output_dir", "mask/mask_config.json"], 2, "output_dir must be a folder; received mask"),
        (["train", "--tickt", "x"], 2, "train: the following arguments are required: --ticket."),
        (["train", "--ticket", "./no"], 1, "train: the source must be a folder or the id of a repository"),
        (
            ["train", "--ticket", "mask", *QUICK],
            1,
            "train: a ticket must have weights to start from; received mask, which holds only a mask. Load",
        ),
        (["align", "--ticket", "./no", "--target_model", "x"], 1, "align: the source must be a folder"),
        (["connect", "--a", "./no", "--b", "./no", *DIGITS], 1, "connect: a network must be a folder or repository"),
        (["connect", "--a", ".", "--b", ".", *DIGITS], 1, "connect: a network must be .* a config.json; received"),
        (["levels", "no"], 1, "levels: a run must be a folder with lottery_state.json"),
        (["show", "no.json"], 1, "show: a ladder must be a file .*received no.json"),
        (["inspect"], 2, "inspect: the following arguments are required: source."),
        (["inspect", "mask", "--jsn"], 2, "inspect: the options must be known; received --jsn .nearest: --json."),
        (["inspect", "mask", "more"], 2, "inspect: every value must belong to an option; received 'more'."),
        (["inspect", "no"], 1, "received no, which is no folder here: .*(offline|HF_HUB_OFFLINE)"),
        (["inspect", "me/ticket"], 1, "received me/ticket, which is no folder here: .*(offline|HF_HUB_OFFLINE)"),
        (["diff", "mask", "./no"], 1, "diff: the source must be a folder or the id of a repository"),
        (["verify", "mask", "--dense-base"], 2, "verify: --dense-base must come with --model"),
        (["pack", "model", "--output", "mask"], 1, "pack: the output must be a folder without results; received mask,"),
        (["pack", "no/folder/here", "--output", "out"], 1, "pack: .*received 'no/folder/here'"),
        (["completion", "fish"], 2, "completion: argument shell: invalid choice: 'fish' "),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line_that_says_what_to_do(call, monkeypatch, tmp_path, arguments, status, message):
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    before = sorted(tmp_path.rglob("*"))
    found, out, err = call(*arguments)
    line = err.splitlines()[-1]
    assert found == status and not out and line.startswith("hf-lottery"), err
    assert re.search(message, line), line
    assert "Traceback" not in err and sorted(tmp_path.rglob("*")) == before


def test_a_missing_column_is_named_with_those_that_there_are(call, tmp_path):
    (tmp_path / "texts").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"texts/{split}.csv").write_text("text,stars\na,1\nb,0\n")
    flags = ["--task", "text-classification", "--dataset_name", "texts", "--label_column_name", "label"]
    (tmp_path / "model").mkdir()
    BERT.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    status, _, err = call("find", *flags, "--config_name", "model", "--sparsity", "0.5", *QUICK)
    line = err.splitlines()[-1]
    assert status == 1 and line.startswith("hf-lottery find: ") and "'label'" in line and "text, stars" in line


def test_finished_folders_are_kept(run, call, digits_search, tmp_path):
    search = digits_search[0]
    flags = [*SMALL, *QUICK, "--ticket", search / "ticket", "--output_dir"]
    assert call("train", *flags, "trained", "--num_train_epochs", 1, "--init", "seed:7", "--mask", "none")[0] == 0
    align = ["align", *flags, "aligned", "--target_model", "trained", "--match_batches", 1]
    connect = ["connect", *SMALL, *QUICK, "--a", search / "level-00/trained", "--b", "trained", "--points", 2]
    connect += ["--align", "none", "--output_dir", "line"]
    assert call(*align)[0] == call(*connect)[0] == 0
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for again, folder in ((["train", *flags, "trained"], "trained"), (align, "aligned"), (connect, "line")):
        status, _, err = call(*again)
        must = f"hf-lottery {again[0]}: the output must be a folder without results; received {folder}, which has"
        assert status == 1 and err.splitlines()[-1].startswith(must)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == left


def test_a_search_is_read_again_and_other_settings_are_refused(run, tmp_path, capsys):
    flags = [*SMALL, "--sparsity", 0.2, "--rewind", "init", "--num_train_epochs", 1, "--output_dir", tmp_path / "run"]
    first = json.loads(run(find_ticket, *flags, "--json"))
    assert first["ticket"] == str(tmp_path / "run/ticket") and first["levels"][-1]["sparsity"] == pytest.approx(0.2)
    assert json.loads(run(find_ticket, *flags, "--json")) == first
    with pytest.raises(SystemExit, match="hf-lottery find: .*a resumed run must have the settings it began with"):
        run(find_ticket, *flags, "--learning_rate", 1)
    assert "Traceback" not in capsys.readouterr().err


def test_json_is_what_the_tables_say(call):
    Mask({"a": torch.tensor([False, True])}).save_pretrained("other")
    status, out, _ = call("inspect", "mask", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["kept"] == 1 and facts["parameters"] == {"a": {"shape": [2], "sparsity": 0.5}}
    status, out, _ = call("diff", "mask", "other", "--json")
    assert status == 1 and json.loads(out)["parameters"]["a"]["overlap"] == 0 and not json.loads(out)["equal"]
    status, out, _ = call("verify", "mask", "--json")
    assert status == 0 and json.loads(out) == {"right": True, "files": "whole"}


def test_inspect_is_fast_because_it_loads_no_hugging_face_library(call):
    heavy = ["transformers", "accelerate", "datasets", "huggingface_hub", "scipy", "matplotlib"]
    code = "import sys; from hf_lottery.hf.commands.main import main\nprint(main(['inspect', 'mask']))\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-2:] == ["0", "[]"]
    code = "import sys; from hf_lottery.hf.commands.main import main\nmain(['--help'])\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("arguments", [["inspect", "mask"], ["--help"]])
def test_a_pipe_that_is_closed_is_no_fault(call, arguments):
    command = [sys.executable, "-m", "hf_lottery", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 1


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(call, shell):
    status, script, _ = call("completion", shell)
    assert status == 0 and ("bashcompinit" in script) == (shell == "zsh")
    script = script.split("bashcompinit\n")[-1]  # the rest is the same
    for words, wanted in [
        (["ins"], "inspect"),
        (["inspect", "--rev"], "--revision"),
        (["find", "--sparsi"], "--sparsity"),
        (["find", "--dataset_n"], "--dataset_name"),
        (["find", "mas"], ""),
        (["nothing", "--x"], ""),
    ]:
        asked = f"COMP_WORDS=(hf-lottery {' '.join(words)}); COMP_CWORD={len(words)}; _hf_lottery"
        code = f'{script}\n{asked}; echo "${{COMPREPLY[@]}}"'
        assert subprocess.run(["bash", "-c", code], capture_output=True, text=True).stdout.strip() == wanted
    assert "--dataset-name" not in script  # every option once


@pytest.mark.slow
def test_an_interrupted_search_says_how_to_go_on_and_goes_on(tmp_path):
    flags = [*SMALL, *QUICK, "--num_train_epochs", 20, "--sparsity", 0.2, "--rewind", "init", "--output_dir", tmp_path]
    command = [sys.executable, "-m", "hf_lottery", "find", *map(str, flags)]
    state = tmp_path / "lottery_state.json"

    def finished():
        return json.loads(state.read_text())["finished"] if state.exists() else []

    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **quiet) as process:
        while not finished():
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate()
    must = "hf-lottery find: interrupted. What is finished is kept. The same command goes on where it stopped."
    assert process.returncode == 130 and "Traceback" not in err and err.splitlines()[-1] == must
    before = finished()
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert finished()[: len(before)] == before and len(finished()) > len(before)  # seconds of the first level too


@pytest.mark.slow
def test_a_log_file_has_no_bars_and_the_next_process_knows_the_network(tmp_path):
    network = ["--dataset_name", "digits", "--model_type", "lenet", "--max_train_samples", "64", "--use_cpu", "true"]
    search = [*network, "--sparsity", "0.2", "--rewind", "init", "--num_train_epochs", "1", "--output_dir", "run"]
    model = ["--model", "run/level-00/trained", "--dense-base"]
    for command in (["find", *search], ["verify", "run/ticket", *model]):
        result = subprocess.run(
            [sys.executable, "-m", "hf_lottery", *command],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0 and "%|" not in result.stdout + result.stderr and "\r" not in result.stderr
        assert result.stderr.count("\n") < 10, result.stderr
