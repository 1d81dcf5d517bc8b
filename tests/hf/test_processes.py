"""A search on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(("score", "slow"), [("magnitude", 1), ("saliency", 0), ("aws", 0)])
def test_both_processes_find_the_same_ticket(tmp_path, score, slow):
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--main_process_port",
        str(29600 + os.getpid() % 300), str(HERE / "processes.py"), str(tmp_path), score, str(slow),
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{HERE}:{HERE.parent.parent}"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["levels"] == [0, 1, 2, 3]
