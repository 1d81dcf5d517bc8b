"""Ladders of whole units: the search prunes units, and every row reuses a choice of units."""

import pytest
import torch
from small_ladders import BRIEF, ROOT

from hf_lottery import Snapshot, norm_parameters, weight_matching
from hf_lottery.hf.ladder.cells import Cell, Ladder
from hf_lottery.hf.ladder.compute import compute_cell
from hf_lottery.hf.ladder.results import DIAGNOSTICS
from hf_lottery.hf.ladder.rows import ROWS, Target
from hf_lottery.hf.ladder.sweep import points
from hf_lottery.hf.ladder.table import removed
from hf_lottery.hf.tasks.models import build_model
from hf_lottery.pruning import score_weights
from hf_lottery.signs import SignedMask
from hf_lottery.structured import UnitMask, unit_scores
from hf_lottery.symmetry import discover

UNITS = [
    *BRIEF, "--config", "recipes/mnist1d/ladder_units.yaml", "--row_epochs", "1", "--start", "epoch:1", "--rewind",
    "epoch:1", "--sparsity", "0.8", "--pruning_fraction", "0.8",
]  # fmt: skip


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """A ladder of two perceptrons whose searches are finished, for masks and for signs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        (point,) = points([*UNITS, "--output_dir", str(tmp_path_factory.mktemp("units"))])
        for kind in ("imp", "aws"):
            for seed in (0, 1):
                compute_cell(point.ladder, Cell(f"search_{kind}", seed))
    return point.ladder


@pytest.fixture
def target(ladder):
    """The network of seed 1 where its rows start, whose source is that of seed 0."""

    def started(seed):
        return Snapshot.load(ladder.start_file(seed))

    network = build_model(ladder.model_args, ladder.data, 1)
    started(1).restore_(network)
    spec = discover(network, {"pixel_values": torch.ones(2, *next(iter(ladder.data.train))["pixel_values"].shape)})

    def match(how, source, aim):
        return weight_matching(spec, source=source, target=aim, seed=0)

    return Target(network, 1, 0, ladder.level, ladder.searched, started, match, norm_parameters, lambda: spec)


def numbers(mask):
    return {group: int(kept.sum()) for group, kept in mask.units.items()}


def test_the_search_prunes_units(ladder, target):
    for kind in ("imp", "aws"):
        mask = target.mask(kind, 0)
        assert isinstance(mask, UnitMask) and sorted(numbers(mask).values()) == [20, 60]
    assert ladder.result(Cell("search_imp", 0))["levels"][1][0] == pytest.approx(0.8)


@pytest.mark.parametrize("row", ["random", "magnitude", "permuted_weight"])
def test_every_row_keeps_as_many_units_as_the_source(target, row):
    naive, found = ROWS["naive"].reuse(target).mask, ROWS[row].reuse(target)
    assert isinstance(naive, UnitMask) and isinstance(found.mask, UnitMask)
    assert numbers(found.mask) == numbers(naive) and found.mask != naive and list(found.mask) == list(naive)
    expected = UnitMask(found.mask.units, target.spec(), names=naive)  # entries and units say the same
    assert found.mask == expected
    if found.match is not None:
        for group, kept in found.mask.units.items():
            assert torch.equal(kept, naive.units[group][torch.tensor(found.match.permutation.entry(group))])


def test_the_largest_units_are_those_of_the_target_where_rows_start(target):
    found = ROWS["magnitude"].reuse(target).mask
    scores = unit_scores(target.spec(), score_weights({name: target.network.get_parameter(name) for name in found}))
    for group, kept in found.units.items():
        assert scores[group][kept].min() >= scores[group][~kept].max()


@pytest.mark.parametrize("row", ["aws_signs", "permuted_signs", "shuffled_signs"])
def test_signs_go_with_the_units(target, row):
    source = SignedMask.from_pretrained(target.searched("aws", 0) / "signed")
    found = ROWS[row].reuse(target)
    assert isinstance(found.mask, UnitMask) and numbers(found.mask) == numbers(target.mask("aws", 0))
    assert found.signed.mask == found.mask and found.signed.agreement(target.network).overall == 1
    if row == "permuted_signs":
        source = SignedMask(found.match.permutation(source.mask), found.match.permutation(dict(source)))
    assert (found.signed == source) == (row != "shuffled_signs")


def test_results_say_how_many_units_went(ladder):
    for row in ("lth", "naive", "random"):
        compute_cell(ladder, Cell(row, 0))
        assert ladder.result(Cell(row, 0))["unit_sparsity"] == pytest.approx(0.8)
    cells = {row: ladder.result(Cell(row, 0)) for row in ("naive", "random")}
    rows = {row: {name: cell.get(name) for name in ("sparsity", "unit_sparsity")} for row, cell in cells.items()}
    sparsity = 100 * cells["naive"]["sparsity"]
    assert removed({"rows": rows}) == f"80.0 % of units cut, {sparsity:.1f} % sparse"
    assert "unit_sparsity" in DIAGNOSTICS and 0 < cells["naive"]["overlap"] < 1


def digests(*more):
    ladder = Ladder.of([*UNITS, "--output_dir", "x", *more])
    return {cell: ladder.digest(cell) for cell in ladder.cells}


@pytest.mark.parametrize(
    "more",
    [
        ["--structured", "false"],
        ["--structured_multiple", "4"],
        ["--structured_groups", "0", "--start", "init"],
        ["--start", "init", "--row_epochs", "3"],
    ],
)
def test_the_dense_row_is_that_of_every_search(more):
    first, now = digests(), digests(*more)
    assert {cell.kind for cell, name in now.items() if first[cell] == name} == {"dense"}
