import pytest

from hf_lottery.staging import staged_folder, write_atomically


def test_a_new_folder_appears_whole(tmp_path):
    with staged_folder(tmp_path / "out", last="b") as stage:
        (stage / "a").write_text("1")
        assert not (tmp_path / "out").exists()
        (stage / "b").write_text("2")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    assert (tmp_path / "out").stat().st_mode & 0o755 == 0o755


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
    write_atomically(tmp_path / "deep/file", b"1")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "deep/file", b"2")
    assert (tmp_path / "deep/file").read_bytes() == b"1"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
