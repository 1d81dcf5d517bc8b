"""Every picture is drawn from exactly what another function returns."""

import copy
import csv
import sys

import pytest
import torch
from torch import nn

from hf_lottery import (
    Mask,
    discover,
    error_barrier,
    find_ticket,
    norm_parameters,
    permute_,
    prunable,
    rewind,
    weight_matching,
    write_report,
)
from hf_lottery.connectivity.overlap import overlap_by_group, overlap_by_head, overlap_by_parameter
from hf_lottery.connectivity.plane import loss_plane
from hf_lottery.report import (
    Section,
    barrier_rows,
    empty_rows,
    level_rows,
    level_table,
    plot_against_density,
    plot_barriers,
    plot_layers,
    plot_match,
    plot_norm_path,
    plot_overlap,
    plot_plane,
    plot_sign_flips,
)
from hf_lottery.signs.norms import norm_path

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
# What LotteryTrainer.history holds: two levels, and the final run at the sparsity of the last.
HISTORY = [
    {"level": 0, "sparsity": 0.0, "metrics": {"eval_accuracy": 0.9, "eval_loss": 0.3, "sign_flips": 0.05}},
    {"level": 1, "sparsity": 0.5, "metrics": {"eval_accuracy": 0.8, "eval_loss": 0.4, "sign_flips": 0.10}},
    {"level": 2, "sparsity": 0.5, "metrics": {"eval_accuracy": 0.7, "train_loss": 1.0}, "final_run": True},
]


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


@torch.no_grad()
def error(model):
    return model(X).square().mean().item()


def levels(seed, metrics):
    """A search in which nothing is trained."""
    model = network(seed)
    return list(find_ticket(model, lambda *_: metrics, within=prunable(model), levels=2, rewind=rewind.init))


def rows_of(picture):
    with open(picture.path.with_suffix(".csv")) as file:
        return list(csv.DictReader(file))


def test_barriers_before_and_after_a_match(tmp_path):
    a, b = network(1), network(2)
    before = error_barrier(a, b, error, points=3)
    match = weight_matching(discover(a, (X,)), source=a, target=b)
    permute_(a, match.permutation)
    barriers = {"as they were": before, "aligned": error_barrier(a, b, error, points=3)}
    drawn = plot_barriers(tmp_path / "barrier.png", barriers)
    assert [(row["series"], float(row["error"])) for row in rows_of(drawn)] == [
        (name, value) for name, one in barriers.items() for value in one.errors
    ]
    alone = plot_barriers(tmp_path / "one.png", before, ylabel="loss", title="t")
    assert {row["series"] for row in rows_of(alone)} == {f"barrier {before.barrier:.4g}"}
    assert alone.alt == "loss on the straight line between two networks: t"
    assert barrier_rows(barriers).rows[0][-1] == f"{before.barrier:.4f}"

    for found in (match, match.report):
        drawn = plot_match(tmp_path / "match.png", found, score="cosine similarity")
        assert [(row["group"], float(row["matched"])) for row in rows_of(drawn)] == [
            (name, group.matched) for name, group in match.report.groups.items()
        ]


def test_the_plane_through_three_networks(tmp_path):
    plane = loss_plane(network(1), network(2), network(3), error, points=2)
    drawn = plot_plane(tmp_path / "plane.png", plane, labels=("one", "two", "three"))
    rows = rows_of(drawn)
    assert [float(row["error"]) for row in rows[:4]] == [value for row in plane.errors for value in row]
    assert [row["network"] for row in rows[4:]] == ["one", "two", "three"]


def masks():
    generator = torch.Generator().manual_seed(1)
    weights = prunable(network(1))
    return [Mask({n: torch.rand(w.shape, generator=generator) < 0.4 for n, w in weights.items()}) for _ in "ab"]


def test_masks_layer_by_layer(tmp_path):
    a, b = masks()
    drawn = plot_layers(tmp_path / "layers.png", a, dead=empty_rows(a, heads={"0.weight": 2}))
    assert [(row["parameter"], float(row["sparsity"]), row["heads"]) for row in rows_of(drawn)] == [
        (name, sparsity, "2" if name == "0.weight" else "0") for name, sparsity in a.layer_sparsities().items()
    ]
    both = plot_layers(tmp_path / "both.png", {"a": a, "b": Mask({"0.weight": b["0.weight"]})})
    assert [(row["mask"], row["parameter"]) for row in rows_of(both)] == [*(("a", n) for n in a), ("b", "0.weight")]
    with pytest.raises(ValueError, match="empty rows can be marked on one mask; received 2 masks"):
        plot_layers(tmp_path / "no.png", {"a": a, "b": b}, dead=empty_rows(a))
    assert not (tmp_path / "no.png").exists()


def test_overlaps(tmp_path):
    a, b = masks()
    spec = discover(network(1), (X,))
    group = next(name for name, one in spec.groups.items() if one.frozen is None)
    for found in (
        overlap_by_parameter(a, b),
        overlap_by_head(a, b, 2, include="0.weight"),
        overlap_by_group(a, b, spec, include=group),
    ):
        drawn = plot_overlap(tmp_path / "overlap.png", found)
        rows = rows_of(drawn)
        assert list(dict.fromkeys(row["row"] for row in rows)) == list(found)
        first = next(iter(found.values()))
        assert float(rows[0]["overlap"]) == (first.iou if hasattr(first, "iou") else first[0].iou)


def test_one_overlap_and_overlaps_before_and_after(tmp_path):
    a, b = masks()
    assert [row["column"] for row in rows_of(plot_overlap(tmp_path / "one.png", a.overlap(b)))] == ["overlap", "chance"]
    both = {"before": overlap_by_parameter(a, b), "after": overlap_by_parameter(a, a)}
    rows = rows_of(plot_overlap(tmp_path / "two.png", both))
    assert [row["row"] for row in rows] == ["before"] * len(a) + ["after"] * len(a)
    assert float(rows[-1]["overlap"]) == 1


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib must be installed to draw.*pip install"):
        plot_layers(tmp_path / "a.png", masks()[0])


@pytest.mark.parametrize("several", [False, True], ids=["one metric", "several"])
def test_the_norm_path(tmp_path, several):
    model = network(1)
    initial = {name: p.detach() + 1 for name, p in norm_parameters(model).items()}
    path = norm_path(model, initial, lambda m: {"eval_loss": error(m), "n": 1} if several else error(m), points=3)
    drawn = plot_norm_path(tmp_path / "norms.png", path, ylabel="loss")
    expected = [metrics["eval_loss"] if several else metrics for _, metrics in path]
    assert [float(row["loss"]) for row in rows_of(drawn)] == expected
    named = plot_norm_path(tmp_path / "norms.png", {"ticket": path, "again": dict(path)}, ylabel="loss")
    assert [float(row["loss"]) for row in rows_of(named)] == expected * 2
    if several:
        with pytest.raises(ValueError, match="must have the metric 'f1'; received eval_loss, n"):
            plot_norm_path(tmp_path / "norms.png", path, ylabel="f1")


@pytest.mark.parametrize(
    ("metrics", "columns"),
    [({"accuracy": 0.5, "note": "x", "sign_flips": 0.1}, ["accuracy", "sign_flips"]), (0.5, ["metric"]), (None, [])],
    ids=["named", "a number", "none"],
)
def test_the_levels_of_find_ticket(tmp_path, metrics, columns):
    found = levels(1, metrics)
    table = level_rows(found)
    assert table.header == ["level", "sparsity", *columns]
    assert [row[1] for row in table.rows] == [f"{level.sparsity:.2%}" for level in found]
    assert level_table(iter(found)).count("\n") == len(found) + 1
    if columns:
        drawn = plot_against_density(tmp_path / "accuracy.png", found, ylabel="accuracy")
        assert [(float(row["sparsity"]), float(row["accuracy"])) for row in rows_of(drawn)] == [
            (level.sparsity, 0.5) for level in found
        ]
    if len(columns) == 2:
        flips = plot_sign_flips(tmp_path / "flips.png", found)
        assert [row["sign flips"] for row in rows_of(flips)] == ["0.1"] * len(found)


def test_the_history_of_a_trainer(tmp_path):
    assert [row[0] for row in level_rows(HISTORY).rows] == ["0", "1", "2 (final run)"]
    assert level_rows(HISTORY).header == ["level", "sparsity", "accuracy", "loss", "sign flips"]
    one = plot_sign_flips(tmp_path / "flips.png", HISTORY)
    both = plot_sign_flips(tmp_path / "flips.png", {"seed 0": HISTORY, "drawn": {0: 0.5}})
    assert [(row["level"], row["sign flips"]) for row in rows_of(both)] == [("0", "0.05"), ("1", "0.1"), ("0", "0.5")]
    assert one.alt == "sign flips of every level"
    for series in (HISTORY, {"ticket": HISTORY}, {"ticket": {0.0: [0.9], 0.5: [0.7]}}):
        drawn = plot_against_density(tmp_path / "accuracy.png", series, ylabel="accuracy")
        assert [(row["series"], row["sparsity"], row["accuracy"]) for row in rows_of(drawn)] == [
            ("ticket", "0.0", "0.9"), ("ticket", "0.5", "0.7")
        ]  # fmt: skip


def test_a_metric_that_no_level_has(tmp_path):
    with pytest.raises(ValueError, match="must have the metric 'f1'; received levels with eval_accuracy, eval_loss"):
        plot_against_density(tmp_path / "p.png", HISTORY, ylabel="f1")
    with pytest.raises(ValueError, match="must have the metric 'sign_flips'; received levels with no metrics"):
        plot_sign_flips(tmp_path / "p.png", levels(1, None))
    assert not list(tmp_path.iterdir())


def test_a_page_of_all_that(tmp_path):
    a, b = network(1), copy.deepcopy(network(2))
    barriers = {"a to b": error_barrier(a, b, error, points=3)}
    mask, other = masks()
    sections = [
        Section("Levels", table=level_rows(HISTORY)),
        Section("Barrier", table=barrier_rows(barriers), picture=plot_barriers(tmp_path / "barrier.png", barriers)),
        Section("Layers", table=empty_rows(mask), picture=plot_layers(tmp_path / "layers.png", mask)),
        Section("Overlap", table=overlap_by_parameter(mask, other)),
    ]
    write_report(tmp_path / "report.html", sections, title="All of it")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<table>") == 4 and page.count("data:image/png") == 2
    assert 'alt="error on the straight line between two networks"' in page
