"""Workers: processes that compute the cells of ladders side by side, one for each core or GPU, with one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..commands.launch import set_up
from ..trainers.garbage import freeze_collector
from ..trainers.run_lock import locked_folder
from .cells import Cell
from .compute import compute_cell
from .sweep import Point, points

_points: list[Point] = []  # the ladders, in a worker


def run_all(asked: Sequence[Point], command: Sequence[str], workers: int | None) -> list[str]:
    """Compute every cell that has no result yet, as soon as those that it needs have one.

    Args:
        asked: The ladders.
        command: The command line that asks for them.
        workers: How many cells are computed side by side. Default: one for each GPU, or one for each core.

    Returns:
        The cells that failed, or that need one that failed; the reasons are printed to standard error.

    Raises:
        BrokenProcessPool: A worker was killed.
        RuntimeError: Another command computes cells in this folder.
    """
    jobs = {point.ladder.file(cell): (i, cell) for i, point in enumerate(asked) for cell in point.ladder.cells}
    waiting = {file: job for file, job in jobs.items() if not file.exists()}
    finished = jobs.keys() - waiting.keys()
    if not waiting:
        return []
    total, done = len(waiting), 0
    running: dict[Future[str | None], Path] = {}
    failed: list[str] = []
    with locked_folder(asked[0].ladder.folder), _pool(command, workers) as pool:
        for point in asked:
            point.ladder.sweep()
        while waiting or running:
            for file, (i, cell) in list(waiting.items()):
                ladder = asked[i].ladder
                if finished >= {ladder.file(needed) for needed in ladder.needs(cell)}:
                    del waiting[file]
                    with _no_interrupts():  # in the workers that this starts
                        running[pool.submit(_compute, i, cell)] = file
            if not running:  # everything left needs a cell that failed
                return [*failed, *(str(cell) for _, cell in waiting.values())]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                file, error = running.pop(future), future.result()
                i, cell = jobs[file]
                done += 1
                name = " ".join(filter(None, [asked[i].name, str(cell)]))
                print(f"[{done}/{total}] {name}{' failed' if error else ''}", flush=True)
                if error:
                    failed.append(name)
                    print(f"{name}: {error}", file=sys.stderr)
                else:
                    finished.add(file)
    return failed


@contextmanager
def _pool(command: Sequence[str], workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """Open the workers for a block; Ctrl-C in it ends them at once, and not when they have computed their cells."""
    gpus = torch.cuda.device_count()
    count = workers or gpus or os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    slots = context.Queue()
    for slot in range(count):
        slots.put(slot % gpus if gpus else None)
    initial = (command, slots, os.getpid())
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=initial) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back in a block, and in the processes that it starts; those must let it through."""
    if sys.platform == "win32":  # which has no masks of signals
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(command: Sequence[str], slots: Any, parent: int) -> None:
    """Build the ladders in a worker, and end it with its parent; the next run would train the same cell otherwise."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; only the parent says so
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    gpu = slots.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)  # a Trainer uses every GPU that it sees
    torch.set_num_threads(1)
    _points.extend(points(command))
    set_up(_points[0].ladder.args)
    freeze_collector()  # every training collects garbage


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _compute(point: int, cell: Cell) -> str | None:
    try:
        compute_cell(_points[point].ladder, cell)
    except Exception:
        return traceback.format_exc()
    return None
