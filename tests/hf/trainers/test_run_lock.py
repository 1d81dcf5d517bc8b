"""A run folder is used by one process at a time, and by none once that process has ended."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_searches import quick, trainer
from small_task import Killed, Points, net
from transformers import TrainerCallback, TrainingArguments

from hf_lottery import SparseTrainer, WinningSignTrainer
from hf_lottery.hf.commands.controls import train_controls
from hf_lottery.hf.ladder.sweep import Point
from hf_lottery.hf.ladder.workers import run_all
from hf_lottery.hf.trainers.main_process import on_main
from hf_lottery.hf.trainers.run_lock import LOCK_NAME, locked_folder

HOLD = Path(__file__).parents[2] / "support/hold_folder.py"
IN_USE = "must be used by one process at a time; received .*run, which process {} on .* uses. Wait"


@pytest.mark.slow
def test_another_process_is_refused_until_this_one_ends_however_it_ends(tmp_path):
    folder, pipe = tmp_path / "run", subprocess.PIPE
    command = [sys.executable, str(HOLD), str(folder)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        try:
            with pytest.raises(RuntimeError, match=IN_USE.format(process.pid)):
                quick(folder).train()
            assert [path.name for path in folder.iterdir()] == [LOCK_NAME]
            process.kill()
            process.wait()
            os.kill(child, 0)  # it lives, and has not taken the lock over
            quick(folder).train()
        finally:
            os.kill(child, signal.SIGKILL)
    assert (folder / "ticket").exists() and not (folder / LOCK_NAME).exists()


def test_one_process_is_refused_too_and_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    with locked_folder(folder):
        with pytest.raises(RuntimeError, match=IN_USE.format(os.getpid())), locked_folder(folder):
            pass
        assert (folder / LOCK_NAME).exists()  # the one that was refused has not deleted it
        with locked_folder(tmp_path / "other"):
            pass
    with locked_folder(folder):
        pass
    assert not list(folder.iterdir())


class Second(TrainerCallback):
    """Begins another training in the same folder, at the first step of this one."""

    def __init__(self, begin):
        self.begin, self.refused = begin, []

    def on_step_end(self, args, state, control, **kwargs):
        if not self.refused:
            with pytest.raises(RuntimeError, match="must be used by one process at a time") as found:
                self.begin()
            self.refused.append(found)


@pytest.mark.parametrize("kind", [None, WinningSignTrainer])
@pytest.mark.parametrize("resume", [False, True])
def test_two_searches_in_one_folder(tmp_path, kind, resume):
    kinds = {} if kind is None else {"kind": kind}
    second = Second(lambda: quick(tmp_path, **kinds).train(resume_from_checkpoint=resume))
    quick(tmp_path, callbacks=[second], **kinds).train()
    assert second.refused and (tmp_path / "ticket").exists()


def test_two_trainings_write_no_checkpoints_into_one_folder(tmp_path):
    def training(save_strategy, callbacks=()):
        settings = {"save_strategy": save_strategy, "num_train_epochs": 1, "report_to": "none"}
        args = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, **settings)
        return SparseTrainer(net(), args, train_dataset=Points(), callbacks=list(callbacks))

    second = Second(lambda: training("steps").train())
    training("steps", [second]).train()
    assert second.refused
    with locked_folder(tmp_path):
        training("no").train()  # writes nothing


def test_controls_and_ladders_are_computed_by_one_command_at_a_time(tmp_path):
    swept = []
    ladder: Any = SimpleNamespace(
        folder=tmp_path, cells=["cell"], file=tmp_path.joinpath, sweep=lambda: swept.append(1)
    )
    args, history = SimpleNamespace(output_dir=str(tmp_path)), [{"level": 0}, {"level": 1}]
    search: Any = SimpleNamespace(args=args, history=history, is_world_process_zero=lambda: True)
    nothing: Any = None
    with locked_folder(tmp_path):
        with pytest.raises(RuntimeError, match="one process at a time"):
            run_all([Point("", ladder)], [], 1)
        with pytest.raises(RuntimeError, match="one process at a time"):
            train_controls(["reinit"], search, nothing, nothing)
        train_controls([], search, nothing, nothing)  # nothing to do
    assert not swept, "what the other command is writing was deleted"


def test_an_interrupted_search_lets_go(tmp_path):
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(1, 2)).train()
    with pytest.raises(ValueError, match="settings it began with"):
        trainer(tmp_path, learning_rate=0.5).train(resume_from_checkpoint=True)
    assert not (tmp_path / LOCK_NAME).exists()
    trainer(tmp_path).train(resume_from_checkpoint=True)
    assert not list(tmp_path.rglob(LOCK_NAME))


def test_a_lock_that_a_killed_process_left_is_taken(tmp_path):
    (tmp_path / LOCK_NAME).write_text('{"process": 1, "host": "gone", "since": "then"}')
    with locked_folder(tmp_path):
        assert "gone" not in (tmp_path / LOCK_NAME).read_text()
    (tmp_path / LOCK_NAME).write_bytes(b"\xff{")
    with locked_folder(tmp_path), pytest.raises(RuntimeError, match=f"which process {os.getpid()}"):
        (tmp_path / LOCK_NAME).write_text((tmp_path / LOCK_NAME).read_text())
        locked_folder(tmp_path).__enter__()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with locked_folder(tmp_path):
        assert "has no locks (No locks available): make sure that no other process uses" in caplog.text
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"), locked_folder(tmp_path):
        pass


def test_a_lock_file_that_its_last_owner_deletes_meanwhile_is_made_again(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def delete_first(handle, how):
        if not calls:
            (tmp_path / LOCK_NAME).unlink()
        calls.append(flock(handle, how))

    monkeypatch.setattr("fcntl.flock", delete_first)
    with locked_folder(tmp_path):
        assert len(calls) == 2
        with pytest.raises(RuntimeError, match="one process at a time"), locked_folder(tmp_path):
            pass


class Unsendable(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def test_every_process_hears_of_an_error_of_the_main_one(monkeypatch):
    """The other process gets what the main one sends; here both are this one."""
    for error, kind in ((ValueError("wrong"), ValueError), (Unsendable("this", "that"), RuntimeError)):
        sent = []

        def fail(error=error):
            raise error

        monkeypatch.setattr(
            "hf_lottery.hf.trainers.main_process.gathered", lambda value, sent=sent: sent.append(value) or [value]
        )
        with pytest.raises(type(error)):
            on_main(fail, main=True)
        monkeypatch.setattr("hf_lottery.hf.trainers.main_process.gathered", lambda _, sent=sent: sent)
        with pytest.raises(kind, match=str(error)):
            on_main(lambda: pytest.fail("only the main process acts"), main=False)
