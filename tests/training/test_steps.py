"""Watchers are told of every step, and may come and go while one runs."""

import threading
from weakref import ref

import torch
from torch import nn, optim

from hf_lottery.training.steps import unwatch, watch


class Log:
    def __init__(self, then=lambda: None):
        self.seen, self.then = [], then

    def before_step(self, optimizer):
        self.seen.append(("before", optimizer))
        self.then()

    def after_step(self, optimizer):
        self.seen.append(("after", optimizer))
        self.then()


def optimizer() -> optim.Optimizer:
    return optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)


def test_a_watcher_is_told_until_it_is_dropped():
    log, ours = Log(), optimizer()
    watch(log)
    ours.step()
    assert log.seen == [("before", ours), ("after", ours)]
    unwatch(log)
    unwatch(log)
    ours.step()
    assert len(log.seen) == 2


def test_watchers_that_come_and_go_during_a_step_do_not_disturb_it():
    """As when an older model is collected just then."""
    kept, logs = Log(), []

    def come_and_go():
        gone = logs.pop()
        unwatch(gone)  # directly, or because it is collected
        watch(kept.others)

    kept.others = Log()
    logs += [Log(come_and_go) for _ in range(3)]
    for log in (*logs, kept):
        watch(log)
    optimizer().step()
    unwatch(kept)
    unwatch(kept.others)
    assert len(kept.seen) == 2


def test_a_watcher_is_not_kept_alive():
    log = Log()
    watch(log)
    gone = ref(log)
    del log
    assert gone() is None
    optimizer().step()


def test_threads_do_not_disturb_each_other():
    errors, stop = [], threading.Event()

    def come_and_go():
        while not stop.is_set():
            log = Log()
            watch(log)
            unwatch(log)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(50):
            optimizer().step()
    except RuntimeError as error:
        errors.append(error)
    finally:
        stop.set()
        thread.join()
    assert not errors
