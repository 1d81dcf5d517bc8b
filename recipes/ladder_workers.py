"""Workers: the cells of a ladder side by side, one process a core or GPU, each with one thread and many cells."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

import torch
from common import set_up
from ladder_cells import Cell, Ladder

_ladder: Ladder | None = None


def run_all(ladder: Ladder, command: list[str]) -> list[Cell]:
    """Compute every cell that has no result yet, as soon as those that it needs have one.

    Args:
        ladder: The ladder.
        command: The command line that asks for it.

    Returns:
        The cells that failed, or that need one that did; why is on the standard error.
    """
    waiting = [cell for cell in ladder.cells if ladder.result(cell) is None]
    finished = set(ladder.cells) - set(waiting)
    if not waiting:
        return []
    gpus = torch.cuda.device_count()
    count = ladder.which.workers or gpus or os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    slots = context.Queue()
    for slot in range(count):
        slots.put(slot % gpus if gpus else None)
    total, done = len(waiting), 0
    running: dict[Future[str | None], Cell] = {}
    failed: list[Cell] = []
    initial = (command, slots, os.getpid())
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=initial) as pool:
        while waiting or running:
            for cell in [cell for cell in waiting if finished.issuperset(ladder.needs(cell))]:
                waiting.remove(cell)
                running[pool.submit(_compute, cell)] = cell
            if not running:  # what is left needs a cell that failed
                return [*failed, *waiting]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, error = running.pop(future), future.result()
                done += 1
                print(f"[{done}/{total}] {cell}{' failed' if error else ''}", flush=True)
                if error:
                    failed.append(cell)
                    print(f"{cell}: {error}", file=sys.stderr)
                else:
                    finished.add(cell)
    return failed


def _begin(command: list[str], slots: Any, parent: int) -> None:
    """Build the ladder in a worker. One that outlives its parent would train a cell that the next run trains too."""
    global _ladder
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    gpu = slots.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)  # the Trainer would use all it sees
    torch.set_num_threads(1)
    _ladder = Ladder.of(command)
    set_up(_ladder.args)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _compute(cell: Cell) -> str | None:
    assert _ladder is not None
    try:
        _ladder.compute(cell)
    except Exception:
        return traceback.format_exc()
    return None
