"""Selection over shards: bit for bit the mask of one process."""

import pytest
import sharded_cases
from process_group import run_on


@pytest.mark.parametrize(
    ("processes", "layout"), [(1, "rows"), (2, "rows"), (4, "rows"), (2, "columns"), (4, "replicas"), (4, "blocks")]
)
def test_same_mask_on_any_number_of_processes(processes, layout):
    assert run_on(processes, sharded_cases.select_all, processes, layout) == [[]] * processes


def test_every_scope_takes_sharded_and_plain_scores_together():
    for found in run_on(2, sharded_cases.scopes, 2):
        assert found == dict.fromkeys(("global", "floor", "uniform", "2:4", "2:4 by rows"), True)


def test_every_process_hears_of_a_nan():
    errors = run_on(2, sharded_cases.nan_on_one, 2)
    assert errors[0] == errors[1]
    assert "scores must be numbers; received NaN, 1 times" in errors[0]
