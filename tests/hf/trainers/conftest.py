"""Searches that are trained once for all tests of the Trainers, and trainings that do not wait for garbage."""

import gc
from functools import cache

import pytest
from small_searches import Finished


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """Every training collects garbage. Without this, it would go through all imported modules each time."""
    gc.freeze()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The finished search with a rewind, such as ``finished("init")``."""
    return cache(lambda rewind: Finished(tmp_path_factory.mktemp("finished"), rewind).run())
