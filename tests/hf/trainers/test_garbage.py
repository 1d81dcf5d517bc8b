"""frozen_collector: what is old is not looked at again, and what is new is collected."""

import gc
import weakref

import pytest
from small_searches import quick
from transformers import TrainerCallback

from hf_lottery.hf.trainers.garbage import frozen_collector


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self):
        self.own = self


@pytest.fixture(autouse=True)
def thawed(_frozen):
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


def test_old_objects_are_left_out_and_new_garbage_is_collected():
    old = weakref.ref(Cycle())
    before = len(gc.get_objects())
    with frozen_collector():
        assert old() is None, "garbage must be removed before the rest is frozen, or it would stay"
        assert len(gc.get_objects()) < before / 10
        new = weakref.ref(Cycle())
        gc.collect()
        assert new() is None
    assert gc.get_freeze_count() == 0


def test_objects_that_were_frozen_stay_frozen():
    gc.freeze()
    with frozen_collector():
        count = gc.get_freeze_count()
        new = weakref.ref(Cycle())
    assert gc.get_freeze_count() == count > 0
    gc.collect()
    assert new() is None


def test_a_search_freezes_once_and_thaws_also_after_an_error(tmp_path):
    counts = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            counts.append(gc.get_freeze_count())
            if len(counts) > 1:
                raise KeyError("the second level")

    with pytest.raises(KeyError, match="the second level"):
        quick(tmp_path, callbacks=[Look()]).train()
    assert counts[0] >= counts[1] > 0  # objects that nothing refers to go all the same
    assert gc.get_freeze_count() == 0
