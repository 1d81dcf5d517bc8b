import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_lottery.storage.atomic import staged_folder, sweep, write_atomically


def test_a_new_folder_appears_whole(tmp_path):
    with staged_folder(tmp_path / "deep/out", last="b") as stage:
        (stage / "a").write_text("1")
        assert stage.parent == tmp_path / "deep" and not (tmp_path / "deep/out").exists()
        (stage / "b").write_text("2")
    assert sorted(path.name for path in (tmp_path / "deep/out").iterdir()) == ["a", "b"]
    assert (tmp_path / "deep/out").stat().st_mode & 0o755 == 0o755


def test_an_existing_folder_gets_the_last_file_last(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/other").write_text("mine")
    (tmp_path / "out/a").write_text("old")
    replace, order = os.replace, []
    monkeypatch.setattr("os.replace", lambda source, target: (order.append(target.name), replace(source, target)))
    with staged_folder(tmp_path / "out", last="a") as stage:
        for name in ("a", "b", "c"):
            (stage / name).write_text("new")
    assert sorted(order) == ["a", "b", "c"] and order[-1] == "a"
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "a": "new", "b": "new", "c": "new", "other": "mine",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exists", [False, True])
def test_an_error_leaves_everything_as_it_was(tmp_path, exists):
    if exists:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/a").write_text("old")
    with pytest.raises(RuntimeError, match="half way"), staged_folder(tmp_path / "out", last="a") as stage:
        (stage / "a").write_text("new")
        raise RuntimeError("half way")
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if exists else [])
    if exists:
        assert (tmp_path / "out/a").read_text() == "old"


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("mine")
    with (
        pytest.raises(NotADirectoryError, match="must be a folder; received the file"),
        staged_folder(tmp_path / "out", last="a"),
    ):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def test_write_atomically(tmp_path, monkeypatch):
    replace, order = os.replace, []
    monkeypatch.setattr("os.fsync", lambda _: order.append("synced"))
    monkeypatch.setattr(
        "os.replace", lambda source, target: (order.append(Path(source).parent), replace(source, target))
    )
    write_atomically(tmp_path / "deep/file", b"1")
    assert order == ["synced", tmp_path / "deep"] and (tmp_path / "deep/file").stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "deep/file", b"2")
    assert (tmp_path / "deep/file").read_bytes() == b"1"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_the_users(tmp_path, umask):
    before = os.umask(umask)
    try:
        with staged_folder(tmp_path / "out", last="a") as stage:
            (stage / "a").write_text("1")
        write_atomically(tmp_path / "file", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_sweep_takes_what_a_killed_process_left_and_nothing_else(tmp_path):
    script = (
        "import os, sys; from hf_lottery.storage.atomic import staged_file, staged_folder\n"
        "with staged_folder(sys.argv[1] + '/a', last='x') as stage, staged_file(sys.argv[1] + '/b') as file:\n"
        "    (stage / 'x').touch(); file.write(b'1'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert sorted(path.name[:3] for path in tmp_path.iterdir()) == [".a-", ".b-"]
    kept = [".hidden", "c-12345678", ".d-1234567"]
    for name in kept:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    sweep(tmp_path / "none")
