"""The smoke test of compatibility passes in this environment too, and so is known to be right when others fail it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SMOKE = Path(__file__).parent / "smoke.py"


@pytest.mark.slow
def test_one_pass_through_the_package(tmp_path):
    root = SMOKE.parents[2]
    result = subprocess.run(
        [sys.executable, str(SMOKE), str(tmp_path / "out")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "out/again/mask_config.json").is_file()
