"""A file that was changed at random gives one clear error, or an object equal to the original, at a bounded cost."""

import pytest
from mutations import try_mutations


def test_some_random_mutations():
    summary, _, _ = try_mutations(60, seed=1)
    assert summary.total() == 60 and sum(n for (_, end), n in summary.items() if end == "errors") >= 30


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["sealed", "version-1"])
def test_a_thousand_random_mutations(old):
    summary, _, _ = try_mutations(1000, old=old)
    assert summary.total() == 1000
    assert len(summary) >= 13, "every kind of object gives errors, and most of them the same object at times"
