"""Selection over shards: bit for bit the mask of one process."""

import pytest
import sharded_cases
from process_group import run_on

from hf_lottery.pruning import chunks

SCOPES = dict.fromkeys(("global", "floor", "uniform", "2:4", "2:4 by rows"), True)


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", chunks.CHUNK)  # the cases change it
    with sharded_cases.alone():
        yield


def test_same_mask_on_this_process(alone):
    assert sharded_cases.select_all(0, 1, "rows") == []


def test_every_scope_takes_sharded_and_plain_scores_together_on_this_process(alone):
    assert sharded_cases.scopes(0, 1) == SCOPES


def test_this_process_hears_of_a_nan(alone):
    assert "the scores of 'a' must be numbers; received NaN, 1 times among 16 values" in sharded_cases.nan_on_one(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "layout"), [(2, "rows"), (4, "rows"), (2, "columns"), (4, "replicas"), (4, "blocks")]
)
def test_same_mask_on_any_number_of_processes(processes, layout):
    assert run_on(processes, sharded_cases.select_all, processes, layout) == [[]] * processes


@pytest.mark.slow
def test_every_scope_takes_sharded_and_plain_scores_together():
    assert run_on(2, sharded_cases.scopes, 2) == [SCOPES] * 2


@pytest.mark.slow
def test_every_process_hears_of_a_nan():
    errors = run_on(2, sharded_cases.nan_on_one, 2)
    assert errors[0] == errors[1]
    assert "the scores of 'a' must be numbers; received NaN, 1 times among 16 values" in errors[0]
