"""The picture of ladders: panels, the order and names of rows, the direction that is better."""

import csv
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from small_ladders import ROOT

from hf_lottery.hf.ladder.picture import (
    ALIGNED,
    CONTROL,
    LABELS,
    NAIVE,
    OTHER,
    REFERENCE,
    SIGNS,
    plot_ladders,
    sections,
)
from hf_lottery.hf.ladder.rows import ROWS
from hf_lottery.hf.ladder.show import read_ladder

GAINS = {"random": -1.0, "lth": 4.0, "naive": 0.0, "permuted_weight": 1.5}


def ladder(gains, *, measure="accuracy", title="LeNet on digits", **more):
    """The results of a ladder, as far as its picture reads them."""
    rows = {row: {"minus_naive": gain, "half_width": 0.5, "sparsity": 0.9} for row, gain in gains.items()}
    return {"title": title, "about": {"point": ""}, "measure": measure, "seeds": [0, 1, 2], "rows": rows} | more


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    return figures


def texts(labels):
    return [label.get_text() for label in labels]


def csv_rows(path):
    return list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))


def test_every_row_has_a_kind_and_a_short_name_of_its_own():
    assert set(LABELS) == set(ROWS) - {"naive"}
    names = [name for _, name in LABELS.values()]
    assert len({*names, NAIVE}) == len(names) + 1 and max(map(len, names)) <= 32
    assert {row for row, (kind, _) in LABELS.items() if kind is ALIGNED} == {
        row for row in ROWS if row.startswith("permuted") and row != "permuted_signs"
    }


def test_the_best_row_is_at_the_top_beside_its_name_and_in_the_colour_of_its_kind(tmp_path, drawn):
    plot_ladders(tmp_path / "p.png", [ladder(GAINS)])
    (axes,) = drawn[0].axes
    order = ["lth", "permuted_weight", "naive", "random"]
    assert texts(axes.get_yticklabels(minor=True)) == order and axes.yaxis_inverted()
    assert texts(axes.get_yticklabels()) == [NAIVE if row == "naive" else LABELS[row][1] for row in order]
    bars = [container.lines[0] for container in axes.containers]
    assert [(bar.get_xdata()[0], bar.get_ydata()[0]) for bar in bars] == [(4.0, 0), (1.5, 1), (-1.0, 3)]
    assert [bar.get_color() for bar in bars] == [REFERENCE.color, ALIGNED.color, CONTROL.color]
    assert list(axes.lines[0].get_xdata()) == [0, 0]  # the mask as it is
    assert texts(drawn[0].legends[0].get_texts()) == [REFERENCE.name, ALIGNED.name, CONTROL.name]
    assert [(row["row"], row["half_width"]) for row in csv_rows(tmp_path / "p.png")] == [
        (row, "0.5") for row in order if row != "naive"
    ]


@pytest.mark.parametrize("measure", ["accuracy", "loss"])
def test_better_is_to_the_right(tmp_path, drawn, measure):
    plot_ladders(tmp_path / "p.png", [ladder({"naive": 0.0, "lth": -0.5, "random": 0.25}, measure=measure)])
    (axes,) = drawn[0].axes
    lower = measure == "loss"
    assert axes.xaxis_inverted() == lower and ("lower is better" in axes.get_xlabel()) == lower
    order = ["lth", "naive", "random"] if lower else ["random", "naive", "lth"]
    assert texts(axes.get_yticklabels(minor=True)) == order
    assert {row["row"]: row["minus_naive"] for row in csv_rows(tmp_path / "p.png")} == {"lth": "-0.5", "random": "0.25"}


@pytest.mark.parametrize("informative", [True, False, None])
def test_a_panel_says_that_there_is_no_conclusion(tmp_path, drawn, informative):
    plot_ladders(tmp_path / "p.png", [ladder(GAINS, informative=informative)])
    (axes,) = drawn[0].axes
    first, *more = axes.get_title(loc="left").splitlines()
    assert (first, more[0]) == ("LeNet on digits", "3 pairs, 90 % sparse, 95 % intervals")
    assert more[1:] == (["no conclusion: own ticket only +4.00 ± 0.50"] if informative is False else [])
    assert (axes.get_facecolor()[:3] == to_rgb("white")) == (informative is not False)


def test_a_panel_for_each_ladder_that_has_the_rows(tmp_path, drawn):
    several = [
        ladder(GAINS, title="first"),
        ladder({"naive": 0.0, "lth": 1.0}, title="without"),
        ladder({"naive": 0.0, "aws_signs": 3.0, "random": -1.0}, title="second"),
        ladder(GAINS, title="third"),
    ]
    several[2]["about"] = {"point": "sparsity=0.9, length=4"}
    plot_ladders(tmp_path / "p.png", several, ["random", "aws_signs"])
    titles = [axes.get_title(loc="left").splitlines()[0] for axes in drawn[0].axes]
    assert titles == ["first", "second, length=4", "third"]
    assert texts(drawn[0].legends[0].get_texts()) == [SIGNS.name, CONTROL.name]
    with pytest.raises(ValueError, match="must have the row naive and one of dense; received first without them"):
        plot_ladders(tmp_path / "none.png", several[:1], ["dense"])
    assert not (tmp_path / "none.png").exists()


def test_a_row_of_another_version_is_drawn_under_its_name(tmp_path, drawn):
    results = read_ladder(ROOT / "docs/ladder/short/fashion-mnist-vit.json")
    plot_ladders(tmp_path / "p.png", [results], ["permuted_residual", "lth"])
    (axes,) = drawn[0].axes
    assert "permuted_residual" not in ROWS and "permuted_residual" in texts(axes.get_yticklabels())
    assert texts(drawn[0].legends[0].get_texts()) == [REFERENCE.name, OTHER.name]


def test_the_page_has_a_picture_for_each_ladder_and_says_what_it_shows(tmp_path):
    files = ["mnist1d-mlp.json", "mnist1d-mlp-fifteen-pairs.json"]
    page = sections([read_ladder(ROOT / "docs/ladder" / file) for file in files], tmp_path)
    pictures = {Path(section.picture.path).name: section.text for section in page if section.picture is not None}
    assert list(pictures) == ["ladder-0.png", "ladder-1.png"]
    first, second = pictures.values()
    assert first.startswith("No conclusion: lth - naive is") and "15 seeds" in second
