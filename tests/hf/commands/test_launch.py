"""The launch check, in this process; tests/recipes/test_several_processes.py launches for real."""

import pytest
from transformers import TrainingArguments

from hf_lottery.hf.commands.launch import check_launch, set_up


@pytest.fixture(autouse=True)
def _launched_alone(monkeypatch):
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


def test_processes_that_do_not_know_of_each_other_are_stopped(monkeypatch, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert args.world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="must know of each other; received 2 processes that each would work alone"):
        set_up(args)


def test_one_process_of_several_that_were_asked_for_is_stopped(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    check_launch(1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(SystemExit, match="must start the processes that it was asked for; received one of several"):
        check_launch(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(2)
