"""A search on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_lottery.hf.trainers.run_lock import locked_folder

pytestmark = pytest.mark.slow
HERE = Path(__file__).parents[2] / "support"


def launch(folder, score, slow):
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--main_process_port",
        str(29600 + os.getpid() % 300), str(HERE / "search_processes.py"), str(folder), score, str(slow),
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{HERE}:{HERE.parent.parent}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(("score", "slow"), [("magnitude", 1), ("saliency", 0), ("aws", 0)])
def test_both_processes_find_the_same_ticket(tmp_path, score, slow):
    result = launch(tmp_path, score, slow)
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["levels"] == [0, 1, 2, 3]


def test_processes_that_come_apart_are_stopped(tmp_path):
    result = launch(tmp_path, "apart", 0)
    assert result.returncode != 0
    assert "must find the same mask; received 2 different masks from 2 processes at level 0" in result.stderr
    assert not (tmp_path / "run/ticket").exists()


def test_both_processes_hear_that_the_folder_is_in_use(tmp_path):
    with locked_folder(tmp_path / "run"):
        result = launch(tmp_path, "magnitude", 0)
    assert result.returncode != 0
    assert f"must be used by one process at a time; received {tmp_path / 'run'}" in result.stderr
    assert not list((tmp_path / "run").iterdir())
