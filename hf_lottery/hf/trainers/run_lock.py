"""The lock of a run folder: one process at a time, until that process ends, however it ends.

The lock is ``flock`` on an open file. The system releases it when the process ends, also by SIGKILL, so a lock is
never left behind. On a network file system it holds between machines, wherever that system supports locks: on NFS,
Linux asks the server. What the file says is only for the message to those that are refused.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from .main_process import on_main

# The Trainer leaves names that begin with "_" out of what it pushes.
LOCK_NAME = "_in_use.lock"
_TAKEN = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_held: set[int] = set()  # descriptors of the locks of this process
logger = logging.getLogger(__name__)


@contextmanager
def locked_folder(folder: str | Path, *, main: bool = True) -> Iterator[None]:
    """Keep other processes out of a folder, as long as they ask in the same way.

    Args:
        folder: The folder, which is made if it does not exist.
        main: Whether this is the main process, which holds the lock for all. Every process must enter the block.

    Raises:
        RuntimeError: Another process uses the folder, or this one does already.
    """
    file = Path(folder) / LOCK_NAME
    handles: list[int] = []
    on_main(lambda: handles.append(_acquire(file)), main=main)
    try:
        yield
    finally:
        for handle in handles:
            _release(handle, file)


def _acquire(file: Path) -> int:
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)  # programs that this process starts do not inherit it
        if not _lock(handle, file):
            owner = _owner(handle)
            os.close(handle)
            raise RuntimeError(
                f"a run folder must be used by one process at a time; received {file.parent}, which {owner} uses. "
                "Wait until that process ends, or end it, or choose another output_dir."
            )
        if _is_still(handle, file):
            break
        os.close(handle)  # its last owner deleted it after it was opened here
    _held.add(handle)
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": began}).encode())
    return handle


def _release(handle: int, file: Path) -> None:
    if handle not in _held:  # a child process, which has forgotten it
        return
    _held.remove(handle)
    if sys.platform == "win32":  # where an open file cannot be deleted
        os.close(handle)
        with suppress(OSError):  # another process has opened it by now
            file.unlink()
        return
    with suppress(OSError):  # someone deleted the folder
        file.unlink()
    os.close(handle)


def _lock(handle: int, file: Path) -> bool:
    """Try to lock an open file; where the file system has no locks, say so and go on."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 2**30, os.SEEK_SET)  # far from what the others read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno not in _UNSUPPORTED:
            raise
        logger.warning(
            "The file system of %s has no locks (%s): make sure that no other process uses this folder.",
            file.parent, error.strerror,
        )  # fmt: skip
    return True


def _owner(handle: int) -> str:
    """Say who holds the lock."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        found = json.loads(os.read(handle, 4096))
        return f"process {found['process']} on {found['host']} (since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has just been locked
        return "another process"


def _is_still(handle: int, file: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _forget() -> None:
    """Close the locks that a forked child inherits; they would outlive the process that holds them."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
