"""The launch check, in this process; tests/recipes/test_several_processes.py launches for real."""

import os
import re
import sys
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from hf_lottery.hf.commands import find_ticket
from hf_lottery.hf.commands.launch import check_launch, check_output, set_up
from hf_lottery.hf.tasks.data import DataArguments


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


def test_an_output_folder_is_no_file_and_is_not_read(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for output in ("new", "new/below", "data/below"):
        check_output(str(tmp_path / output), DataArguments(dataset_name=str(tmp_path / "data")))
    for output in ("file", "file/below"):
        with pytest.raises(ValueError, match=re.escape(f"received {tmp_path / output}, but {tmp_path / 'file'} is a")):
            check_output(str(tmp_path / output))
    for output in ("data", "link", "data/../data/"):
        with pytest.raises(ValueError, match="must be another folder than dataset_name, which is read"):
            check_output(str(tmp_path / output), DataArguments(dataset_name=str(tmp_path / "data")))
    with pytest.raises(ValueError, match="must be another folder than init"):
        check_output(str(tmp_path / "data"), SimpleNamespace(init=f"checkpoint:{tmp_path / 'data'}"))


def test_a_command_without_matplotlib_stops_before_any_work(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="^hf-lottery find: matplotlib must be installed .*pip install"):
        run(find_ticket, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_read_only_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    args = TrainingArguments(output_dir=str(tmp_path / "a/b"), use_cpu=True)
    check_output(args.output_dir)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(PermissionError, match=f"folder to write to; received .*/a/b, but {tmp_path} is read-only"):
        set_up(args)
    check_output(args.output_dir, writes=False)  # a plan
