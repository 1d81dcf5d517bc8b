"""Atomic writes: a half-written file or folder is never seen under its final name."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def staged_folder(folder: str | Path, *, last: str) -> Iterator[Path]:
    """Yield a temporary folder whose files appear in ``folder`` once the block ends without an error.

    A new folder appears in one rename. In an existing folder the files are replaced one by one, ``last`` at the end;
    files that the block did not write stay as they are. If the block raises, ``folder`` is left untouched.

    Args:
        folder: The final place; its parents are created.
        last: Name of the file that makes the folder valid, which is the one that lists the checksums of the others.

    Yields:
        A temporary folder beside ``folder`` to write into.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"the target must be a folder; received the file {target}. Choose another path.")
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield stage
        if not target.exists():
            stage.chmod(0o777 & ~_umask())  # mkdtemp makes it private
            os.rename(stage, target)
            return
        for file in sorted(stage.iterdir(), key=lambda file: file.name == last):
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part of it."""
    with staged_file(path) as file:
        file.write(data)


@contextmanager
def staged_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file to write to, which appears as ``path`` in one step once the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sweep(folder: str | Path) -> None:
    """Delete what killed processes had begun to write into a folder; nobody else may be writing there."""
    for stage in Path(folder).glob(".*-????????"):
        shutil.rmtree(stage) if stage.is_dir() else stage.unlink()


def _umask() -> int:
    """The permissions that the user takes away from new files; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def check_folder(folder: Path, *, what: str) -> None:
    """Check that a folder exists or can be made.

    Args:
        folder: The folder.
        what: What it is called in the message.

    Raises:
        ValueError: It is a file, or lies below one.
    """
    found = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    if not found.is_dir():
        raise ValueError(f"{what} must be a folder; received {folder}, but {found} is a file. Choose another.")
