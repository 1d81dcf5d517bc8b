"""On built-in data the commands work without a network, and do not even try to reach one."""

import json
import os
import subprocess
import sys

import pytest
from recipe_runs import ROOT

# What a process without a network sees, and a record of every try.
WATCHED = """
import json, sys
tried = []
def watch(event, arguments):
    looked_up = event in ("socket.getaddrinfo", "socket.gethostbyname")
    if looked_up or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        tried.append((event, str(arguments)))
        raise OSError("no network")
sys.addaudithook(watch)
from hf_lottery.hf.commands.main import main
statuses = [main(command) for command in json.loads(sys.argv[1])]
print(json.dumps([statuses, tried]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("offline", ["1", "0"])
def test_a_search_and_what_follows_it_try_no_network(tmp_path, offline):
    brief = ["--num_train_epochs", "1", "--max_train_samples", "64", "--use_cpu", "true"]
    network = ["--dataset_name", "digits", "--model_type", "lenet", *brief]
    ticket = [*brief, "--ticket", "run/ticket"]
    commands = [
        ["find", *network, "--sparsity", "0.3", "--pruning_fraction", "0.3", "--rewind", "init", "--output_dir", "run"],
        ["train", *ticket, "--init", "seed:7", "--mask", "none", "--output_dir", "dense-7"],
        ["align", *ticket, "--target_model", "dense-7", "--match_batches", "1", "--output_dir", "aligned"],
        ["connect", *brief, "--a", "run/level-00/trained", "--b", "dense-7", "--points", "2", "--output_dir", "line"],
        ["inspect", "run/ticket"],
        ["verify", "run/ticket"],
    ]
    own = {"HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(commands)],
        cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == [[0] * len(commands), []]
