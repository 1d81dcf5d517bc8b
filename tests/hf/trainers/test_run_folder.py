import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_lottery import Mask, Snapshot
from hf_lottery.hf.trainers.run_folder import RunFolder

SETTINGS = {"sparsity": 0.5, "include": ("a", "b")}


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run", SETTINGS, resume=False)
    run.save()
    return run


def test_a_resumed_run_knows_what_is_finished(run):
    run.finished.append({"level": 0})
    run.save()
    assert RunFolder(run.root, SETTINGS, resume=True).finished == [{"level": 0}]
    with pytest.raises(FileExistsError, match="must not hold a run already; received"):
        RunFolder(run.root, SETTINGS, resume=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SETTINGS | {"sparsity": 0.7}, "received sparsity=0.7 instead of 0.5"),
        (SETTINGS | {"new": 1}, "received new=1 instead of None"),
        ({"sparsity": 0.5}, r"received include=None instead of \['a', 'b'\]"),
    ],
)
def test_other_settings_are_refused(run, settings, message):
    with pytest.raises(ValueError, match=message):
        RunFolder(run.root, settings, resume=True)


def test_what_a_killed_process_had_begun_is_swept_away(run):
    for stage in (run.root / ".level-01-abcd1234", run.level(1) / ".trained-12345678"):
        (stage / "deep").mkdir(parents=True)
    files = [run.root / ".next.safetensors-12345678", run.handed_over]
    for file in files:
        file.write_text("half")
    run.sweep()
    assert sorted(path.name for path in run.root.rglob("*")) == ["level-01", "lottery_state.json"]


@pytest.mark.parametrize("links", [True, False])
def test_rewind_weights_are_kept_once_where_links_work(run, monkeypatch, links):
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("not permitted")))
    mask, start = Mask({"weight": torch.eye(2) > 0}), Snapshot.capture(nn.Linear(2, 2), step=3)
    start.save(run.moment)
    assert not run.has_start(1)
    run.write_start(1, mask, run.moment)
    found_mask, found = run.read_start(1)
    assert run.has_start(1) and found_mask == mask and (found.step, found.sha256()) == (3, start.sha256())
    assert os.path.samefile(run.moment, run.level(1) / "rewind.safetensors") is links
    assert json.loads((run.level(1) / "mask_config.json").read_text())["level"] == 1


def test_a_start_that_was_cut_off_is_none(run, monkeypatch):
    def fail_for_the_weights(source, target):
        if Path(target) == run.level(0) / "rewind.safetensors":
            raise OSError("disk full")
        Path(source).rename(target)

    run.level(0).mkdir()
    Snapshot.capture(nn.Linear(2, 2)).save(run.moment)
    monkeypatch.setattr("os.replace", fail_for_the_weights)
    with pytest.raises(OSError, match="disk full"):
        run.write_start(0, Mask({"weight": torch.eye(2) > 0}), run.moment)
    assert not run.has_start(0)


def test_the_state_is_never_half_written(run, monkeypatch):
    before = (run.root / "lottery_state.json").read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    run.finished.append({"level": 0})
    with pytest.raises(OSError, match="disk full"):
        run.save()
    assert (run.root / "lottery_state.json").read_text() == before
