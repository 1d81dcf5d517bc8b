"""A small ladder that several tests look at, computed in this process."""

import pytest
from small_ladders import ROOT, compute_all, small_ladder

from hf_lottery.hf.ladder.cells import Cell
from hf_lottery.hf.ladder.compute import compute_cell


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def computed(tmp_path_factory):
    """A ladder of two networks with some rows and every search; all its cells have results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        rows = ["permuted_activation", "lrr_signs_norms"]
        point = small_ladder(tmp_path_factory.mktemp("small"), "--rows", *rows, "--pairs", "lth-permuted_activation")
        compute_all(point.ladder)
        for seed in (0, 1):
            compute_cell(point.ladder, Cell("search_aws", seed))
    return point
