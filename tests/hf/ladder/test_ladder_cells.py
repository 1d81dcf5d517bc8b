"""The cells of a ladder: which there are, what they need, and how they are named."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from small_ladders import CONV, ROOT

from hf_lottery.hf.ladder.cells import Cell, Ladder
from hf_lottery.hf.ladder.options import LadderArguments
from hf_lottery.hf.ladder.rows import ROWS, SEARCHES
from hf_lottery.hf.ladder.sweep import Point, points
from hf_lottery.hf.tasks.models import AUTO_MODELS
from hf_lottery.hf.trainers.run_settings import run_settings
from hf_lottery.hf.trainers.sparse_trainer import SparseTrainer

CHOSEN = ["permuted_activation", "permuted_signs", "lrr_signs", "random", "dense"]
EXPERIMENTS = [ROOT / "recipes/fashion_mnist/rebasin.yaml", ROOT / "recipes/mnist1d/sign_transfer.yaml"]
CONFIGS = [*sorted(ROOT.glob("recipes/*/ladder_*.yaml")), *EXPERIMENTS]


def digests(*more: str, rows: Sequence[str] = CHOSEN) -> dict[Cell, str]:
    ladder = Ladder.of([*CONV, "--output_dir", "x", "--rows", *rows, *more])
    return {cell: ladder.digest(cell) for cell in ladder.cells}


def test_a_cell_comes_after_those_that_it_needs():
    ladder = Ladder.of([*CONV, "--seeds", "3", "1", "2", "--rows", *ROWS])
    cells = ladder.cells
    assert len(set(cells)) == len(cells) == 3 * (len(ROWS) + len(SEARCHES))
    for place, cell in enumerate(cells):
        assert set(ladder.needs(cell)) <= set(cells[:place])
    assert ladder.needs(Cell("permuted_signs", 1)) == [
        Cell("search_aws", 3), Cell("search_aws", 1), Cell("search_imp", 1), Cell("aws", 3)
    ]  # fmt: skip
    assert ladder.end(Cell("naive", 1)) == Cell("lth", 1) and ladder.end(Cell("dense", 1)) is None


def test_rows_that_others_are_compared_to_are_added():
    which = Ladder.of([*CONV, "--rows", "lrr_mask", "--pairs", "dense_signs-random"]).which
    assert which.rows == ["lth", "random", "naive", "lrr", "lrr_mask", "aws", "dense_signs"]
    assert Ladder.of(CONV).which.rows == ["dense", "lth", "random", "naive", "permuted_weight", "permuted_activation"]


def test_a_name_says_what_defines_a_cell():
    first = digests()
    assert len(set(first.values())) == len(first)
    assert digests("--output_dir", "y", "--workers", "1", "--pairs", "lth-naive") == first
    by_matching = {cell for cell, name in digests("--match_batches", "3").items() if first[cell] != name}
    assert by_matching == {Cell(row, s) for row in ("permuted_activation", "permuted_signs") for s in (0, 1)}
    by_signs = {cell.kind for cell, name in digests("--level_epochs", "2").items() if first[cell] != name}
    assert by_signs == {"search_aws", "search_lrr", "aws", "lrr", "lrr_signs", "permuted_signs"}
    assert not {cell for cell, name in digests("--learning_rate", "1e-4").items() if first[cell] == name}


def test_more_rows_leave_the_names_of_the_others():
    assert digests().items() <= digests(rows=[*ROWS]).items()


def test_a_name_is_a_hash_of_settings_and_needs():
    """Another text under the hash would make half-finished ladders begin anew."""
    ladder = Ladder.of([*CONV, "--rows", "permuted_signs"])
    cell, model = Cell("permuted_signs", 1), ladder.model_args
    needed = [("search_aws", 0), ("search_aws", 1), ("search_imp", 1), ("aws", 0)]
    what = {
        "cell": "permuted_signs-1",
        "settings": run_settings(ladder.arguments_of(cell), {"data": asdict(ladder.data_args)}),
        "model": [model.task, None, "main", model.load_config().to_dict()],
        "match_batches": 2,
        "start": "epoch:1",
        "trainer": "BareSparseTrainer",
        "row": [1, None, None],
        "needs": [ladder.digest(Cell(*names)) for names in needed],
    }
    expected = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
    assert ladder.digest(cell) == expected[:12]


def test_a_sweep_is_every_combination():
    swept = ["--sparsities", "0.5", "0.6", "--rewinds", "init", "epoch:1", "--widths", "1", "2"]
    command = [*CONV, "--dataset_name", "digits", "--output_dir", "x"]
    found = points([*command, *swept])
    assert len({point.ladder.digest(Cell("lth", 0)) for point in found}) == len(found) == 8
    assert len({point.ladder.digest(Cell("dense", 0)) for point in found}) == 2  # by width alone
    last = found[-1]
    assert (last.name, last.stem) == (
        "sparsity=0.6, rewind=epoch:1, width=2",
        "ladder-sparsity-0.6-rewind-epoch-1-width-2",
    )
    assert (last.ladder.args.sparsity, last.ladder.args.rewind) == (0.6, "epoch:1")
    assert last.ladder.model_args.load_config().width == 2
    assert all(point.ladder.data is last.ladder.data for point in found)
    (alone,) = points([*command, "--sparsity", "0.6", "--config_overrides", "width=2"])
    assert (alone.name, alone.stem) == ("", "ladder")
    assert alone.ladder.digest(Cell("aws_signs", 1)) == last.ladder.digest(Cell("aws_signs", 1))


def searches(found: Sequence[Point]) -> set[Path]:
    return {point.ladder.file(cell) for point in found for cell in point.ladder.cells if not point.ladder.is_row(cell)}


def test_one_search_serves_all_sparsities_and_lengths():
    swept = ["--sparsities", "0.74", "0.45", "--lengths", "1", "4", "--row_learning_rate", "0.01"]
    command = [*CONV, "--output_dir", "x", "--pruning_fraction", "0.5", "--rows", "lth", "naive", "lrr_signs"]
    found = points([*command, *swept])
    assert [point.name for point in found[:3]] == [
        "sparsity=0.74, length=1", "sparsity=0.74, length=4", "sparsity=0.5, length=1"
    ]  # fmt: skip
    assert [point.ladder.level for point in found] == [2, 2, 1, 1]  # 0.5 is the level nearest to 0.45
    assert len(searches(found)) == 2 * 2
    rows = {point.ladder.file(Cell("lrr_signs", 0)) for point in found}
    assert len(rows) == 4  # two levels, two lengths
    assert {point.ladder.arguments_of(Cell("lth", 1)).num_train_epochs for point in found} == {1, 4}
    # The search goes to the sparsest, wherever it is named.
    assert searches(points([*command, "--sparsity", "0.74"])) == searches(found)


def test_two_sparsities_at_one_level_are_refused():
    with pytest.raises(ValueError, match="must be near different levels"):
        points([*CONV, "--output_dir", "x", "--pruning_fraction", "0.5", "--sparsities", "0.2", "0.5"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--rewind", "none"], "rows must start at init, step:K or epoch:K"),
        (["--start", "learning_rate"], "rows must start at init, step:K or epoch:K"),
        (["--sparsities", "0.3", "0.5", "--schedule", "one_shot"], "received one_shot"),
        (["--at", "0.3", "--final_run", "true"], "received a final run"),
    ],
)
def test_settings_of_a_search_that_no_row_could_use_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Ladder.of([*CONV, "--output_dir", "x", *given])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": [0, 0, 1]}, "seeds must be two or more, each once"),
        ({"pilot_seeds": [7]}, "pilot_seeds must be two or more"),
        ({"targets": [1, 1]}, "targets must name each seed once"),
        ({"scan": [0.5], "sparsities": [0.6]}, "received scan and sparsities"),
        ({"sparsities": [0.6], "at": 0.6}, "received sparsities and at"),
        ({"scan": [1.5]}, "scan must be in"),
        ({"row_learning_rate": 0.0}, "row_learning_rate must be above 0"),
        ({"row_learning_rate": 0.1, "row_epochs": -1.0}, "row_epochs must be above 0"),
        ({"row_learning_rate": 0.1, "lengths": [2.0, 2.0]}, "lengths must name each value once"),
        ({"max_loss": -1.0}, "max_loss must be above 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        LadderArguments(**given)


def test_targets_are_in_the_order_of_the_ring():
    assert LadderArguments(seeds=[3, 1, 4, 2], targets=[2, 3, 1]).targets == [3, 1, 2]


@pytest.mark.parametrize(
    ("given", "start", "keeps"),
    [
        (["--rewind", "epoch:1"], "epoch:1", False),
        (["--rewind", "epoch:1", "--start", "epoch:1"], "epoch:1", False),  # the search has it already
        (["--rewind", "epoch:1", "--start", "step:3"], "step:3", True),
        (["--rewind", "none", "--start", "epoch:0"], "init", False),
        (["--rewind", "init", "--start", "epoch:1"], "epoch:1", True),
    ],
)
def test_a_search_saves_where_rows_start_only_where_it_rewinds_to_another_point(given, start, keeps):
    ladder = Ladder.of([*CONV, "--output_dir", "x", *given])
    assert (ladder.start, ladder.keeps_start) == (start, keeps)


def test_accumulated_batches_are_trained_by_the_plain_trainers():
    plain = Ladder.of([*CONV, "--output_dir", "x", "--gradient_accumulation_steps", "2"])
    assert {kind.__name__ for kind in plain.trainers.values()} == {
        "LotteryTrainer", "WinningSignTrainer", "SparseTrainer",
    }  # fmt: skip


def test_targets_are_some_of_the_networks():
    ladder = Ladder.of([*CONV, "--seeds", "3", "1", "4", "2", "--targets", "1", "2", "--rows", "naive", "dense"])
    assert {cell for cell in ladder.cells if ladder.is_row(cell)} == {
        Cell(row, seed) for row in ("dense", "lth", "naive") for seed in (1, 2)
    }
    assert [ladder.source(seed) for seed in ladder.targets] == [3, 4]
    assert {cell.seed for cell in ladder.cells if not ladder.is_row(cell)} == {1, 2, 3, 4}
    whole = Ladder.of([*CONV, "--seeds", "3", "1", "4", "2", "--rows", "naive", "dense"])
    assert all(ladder.digest(cell) == whole.digest(cell) for cell in ladder.cells)


def test_rows_that_start_at_the_initialization_need_no_search_that_says_so():
    signs = ["--output_dir", "x", "--rows", "lrr_signs", "--start"]
    at_start = Ladder.of([*CONV, *signs, "init"])
    assert {cell.kind for cell in at_start.cells} == {"search_lrr", "lrr", "lrr_signs"}
    later = Ladder.of([*CONV, *signs, "epoch:1"])
    assert {cell.kind for cell in later.cells} == {"search_imp", "search_lrr", "lrr", "lrr_signs"}
    assert later.start_file(0) == later.searched("imp", 0) / "level-01/rewind.safetensors"  # it rewinds there
    other = Ladder.of([*CONV, *signs, "step:3"])
    assert other.start_file(0).parent == other.searched("imp", 0)


def test_settings_of_rows_leave_searches_and_the_dense_rows():
    first, deep = digests(), ["--pruning_fraction", "0.2"]
    base = digests(*deep)
    rows = {cell for cell in base if Ladder.is_row(cell) and cell.kind != "dense"}
    for more in (["--row_learning_rate", "0.5"], ["--row_learning_rate", "2e-3", "--row_epochs", "3"], ["--at", "0.2"]):
        now = digests(*deep, *more)
        assert {cell for cell, name in now.items() if base[cell] != name} == rows
    own = ["--row_learning_rate", "0.5"]
    assert not {*digests(*deep, *own).values()} & {digests(*deep, *own, "--row_epochs", "1")[cell] for cell in rows}
    same = digests("--converged_within", "0.5", "--max_loss", "1", "--pilot_seeds", "7", "8", "--title", "Other")
    assert same == first
    moved = digests("--start", "step:1")
    assert {cell.kind for cell, name in moved.items() if first[cell] == name} == {"dense", "search_lrr", "search_aws"}
    augmented = Ladder.of([*CONV, "--augment", "true"]).trainers
    assert augmented["row"] is SparseTrainer  # the bare loop reads each sample once


@pytest.mark.parametrize(
    ("given", "scan", "sparsities", "at"),
    [
        ([], [0.5, 0.7], None, None),
        (["--sparsities", "0.6"], None, [0.6], None),
        (["--at", "0.6"], None, None, 0.6),
        (["--scan", "0.8", "0.9"], [0.8, 0.9], None, None),
        (["--sparsity", "0.9"], [0.5, 0.7], None, None),
    ],
)
def test_the_command_line_replaces_a_scan_of_the_file(tmp_path, given, scan, sparsities, at):
    file = tmp_path / "ladder.yaml"
    file.write_text("scan: [0.5, 0.7]\n")
    which = Ladder.of([*CONV, "--config", str(file), *given]).which
    assert (which.scan, which.sparsities, which.at) == (scan, sparsities, at)
    file.write_text("sparsities: [0.5, 0.7]\n")
    which = Ladder.of([*CONV, "--config", str(file), "--scan", "0.8"]).which
    assert (which.scan, which.sparsities, which.at) == ([0.8], None, None)


def test_a_network_without_a_width_cannot_be_swept():
    command = [
        "--config",
        "recipes/mnist1d/ladder_transformer.yaml",
        "--use_cpu",
        "true",
        "--sparsities",
        "0.8",
        "--widths",
        "1",
        "2",
    ]
    with pytest.raises(SystemExit, match="widths need a configuration that has a width; received one of vit"):
        points(command)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_of_a_ladder(config):
    ladder = points(["--config", str(config), "--use_cpu", "true"])[-1].ladder
    assert ladder.which.title and set(ladder.which.rows) <= ROWS.keys()
    if ladder.model_args.config_name is not None:
        assert Path(ladder.model_args.config_name).exists()
        model_config = ladder.model_args.load_config()
        has_stream = model_config.model_type in ("vit", "gpt2", "llama", "mlp_mixer")
        assert has_stream == any(row.endswith("_residual") for row in ladder.which.rows)
        assert AUTO_MODELS[ladder.model_args.task].from_config(model_config).num_parameters() > 1000


def test_the_experiments_of_the_papers_are_ladders():
    alignment, signs = (Ladder.of(["--config", str(config), "--use_cpu", "true"]) for config in EXPERIMENTS)
    assert alignment.which.rows == ["dense", "lth", "naive", "permuted_activation"]
    assert {cell.kind for cell in alignment.cells if not alignment.is_row(cell)} == {"search_imp"}
    assert set(signs.which.rows) == {
        "dense", "lrr", "lrr_signs", "lrr_mask", "lrr_signs_norms", "aws", "aws_signs", "aws_mask", "aws_signs_norms"
    }  # fmt: skip
    assert {cell.kind for cell in signs.cells if not signs.is_row(cell)} == {"search_lrr", "search_aws"}
    search = signs.arguments_of(Cell("search_aws", 0))
    assert (search.dense_epochs, search.level_epochs, search.level_lr_scheduler_type) == (10, 5, "constant")
    assert (search.rewind, search.norm_interpolation) == ("learning_rate", "step")
    assert signs.arguments_of(Cell("aws_signs", 0)).rewind == "init"  # every row is trained from step 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "nave"], "rows must be among dense, lth"),
        (["--pairs", "lth-nave"], "rows must be among dense, lth"),
        (["--pairs", "lth"], "pairs must name two rows, such as aws_signs-aws_mask; received 'lth'"),
        (["--seeds", "3"], "seeds must be two or more, each once; received [3]. Each network has another as source"),
        (["--match_batches", "0"], "match_batches must be at least 1; received 0"),
        (["--workers", "0"], "workers must be at least 1; received 0"),
        (["--targets", "1", "2"], "targets must be among the seeds, [0, 1]; received 2"),
        (["--row_epochs", "2"], "row_epochs must come with row_learning_rate; received it alone"),
        (["--lengths", "2"], "row_epochs must come with row_learning_rate; received it alone"),
        (["--scan", "0.5", "--widths", "1", "2"], "scan must choose the sparsity of one ladder; received it with"),
    ],
)
def test_mistakes_are_told(arguments, message, capsys):
    with pytest.raises(SystemExit):
        Ladder.of([*CONV, *arguments])
    assert message in capsys.readouterr().err
