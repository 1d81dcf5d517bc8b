"""A search that is killed and run again ends with the ticket of one that nobody disturbed."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from recipe_runs import ROOT

from hf_lottery import Ticket

QUIET = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def start(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--main_process_port", port, "recipes/find_ticket.py", "--config", "recipes/digits/imp.yaml",
        "--config_name", "recipes/digits/config.json", "--pruning_fraction", "0.2", "--output_dir", str(folder),
        "--num_train_epochs", "8", "--sparsity", "0.4", "--max_train_samples", "512",
        "--disable_tqdm", "true", "--per_device_train_batch_size", "16", "--save_steps", "5", "--rewind", "step:7",
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, start_new_session=True, env=environment, **QUIET)


def complete(folder):
    """The checkpoints that are complete now; old ones are deleted as a search goes on."""
    return {path.parent.relative_to(folder) for path in folder.glob("level-*/checkpoint-*/lottery_checkpoint.json")}


def kill(launcher, whom):
    """Kill the process of one rank, or all: ranks have sessions of their own, and outlive a launcher that is killed."""
    processes = psutil.Process(launcher.pid).children(recursive=True)
    ranks = {process.environ()["RANK"]: process for process in processes if "RANK" in process.environ()}
    if whom == "all":
        launcher.kill()
    for process in ranks.values() if whom == "all" else [ranks[str(whom)]]:
        process.kill()
    assert launcher.wait(timeout=120) != 0
    psutil.wait_procs(ranks.values(), timeout=120)


def assert_alike(whole, killed):
    """The two searches ended with the same ticket, weights and losses."""
    first, second = (Ticket.from_pretrained(folder / "ticket") for folder in (whole, killed))
    assert first.mask == second.mask and first.start.sha256() == second.start.sha256()
    last = "level-03/trained/model.safetensors"
    assert (whole / last).read_bytes() == (killed / last).read_bytes()
    for mine, theirs in zip(first.info["history"], second.info["history"], strict=True):
        assert mine["metrics"]["eval_loss"] == theirs["metrics"]["eval_loss"]


@pytest.mark.slow
def test_killed_at_five_random_moments(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(timeout=300) == 0
    moments = random.Random(7)
    for whom in (0, "all", 1, "all", 0):
        # Counted in checkpoints, of which there are about 100: on a machine of any speed the search is not over yet,
        # and every attempt gets further.
        seen, count = complete(killed), moments.randint(1, 12)
        launcher = start(killed)
        deadline = time.monotonic() + 120
        while count > 0 and launcher.poll() is None and time.monotonic() < deadline:
            new = complete(killed) - seen
            seen |= new
            count -= len(new)
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        assert launcher.poll() is None, "the search was over before it was killed"
        kill(launcher, whom)
        assert not (killed / "ticket").exists()
    assert start(killed).wait(timeout=300) == 0
    assert_alike(whole, killed)
    assert not list(killed.glob(".*"))


@pytest.mark.slow
def test_killed_in_one_process_and_run_again(tmp_path):
    """SIGKILL in level 2, the same command again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def command(folder):
        return [
            sys.executable, "recipes/find_ticket.py", "--config", "recipes/digits/imp.yaml", "--config_name",
            "recipes/digits/config.json", "--pruning_fraction", "0.2", "--per_device_train_batch_size", "32",
            "--output_dir", str(folder), "--num_train_epochs", "4", "--sparsity", "0.4", "--max_train_samples", "256",
            "--use_cpu", "true", "--disable_tqdm", "true", "--dataloader_pin_memory", "false", "--save_strategy",
            "steps", "--save_steps", "5",
        ]  # fmt: skip

    subprocess.run(command(whole), check=True, **QUIET)
    process = subprocess.Popen(command(killed), **QUIET)
    deadline = time.monotonic() + 120
    while not list(killed.glob("level-02/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "ticket").exists()
    subprocess.run(command(killed), check=True, **QUIET)
    assert_alike(whole, killed)
