import csv
import itertools
import math
import sys

import matplotlib
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from notebook_view import as_html

from hf_lottery.connectivity.plane import Plane
from hf_lottery.report import (
    EmptyRows,
    Picture,
    Section,
    Table,
    empty_rows,
    level_table,
    markdown_table,
    plot_against_density,
    plot_barriers,
    plot_layers,
    plot_match,
    plot_norm_path,
    plot_overlap,
    plot_plane,
    plot_sign_flips,
)
from hf_lottery.report.style import COLORS, curve_style
from hf_lottery.report.tables import number_text


def test_markdown_table():
    assert markdown_table(["a", "long"], [["1", "2"], ["333", "4"]]) == (
        "| a   | long |\n| --- | ---- |\n| 1   | 2    |\n| 333 | 4    |"
    )
    assert markdown_table(["a"], []) == ""


def test_level_table_shows_what_there_is():
    history = [
        {"level": 0, "sparsity": 0.0, "metrics": {"eval_accuracy": 0.5, "eval_loss": 1.25, "train_loss": 9.0}},
        {"level": 1, "sparsity": 0.2, "metrics": {"train_loss": 2.0}},
        {"level": 2, "sparsity": 0.3, "metrics": {"eval_accuracy": 0.0}},
    ]
    rows = level_table(history).splitlines()
    assert rows[2].split() == ["|", "0", "|", "0.00%", "|", "0.5000", "|", "1.2500", "|", "-", "|"]
    assert rows[3].split() == ["|", "1", "|", "20.00%", "|", "-", "|", "2.0000", "|", "-", "|"]
    assert rows[4].split() == ["|", "2", "|", "30.00%", "|", "0", "|", "-", "|", "-", "|"]


def test_tables_and_sections_print_in_a_few_lines():
    table = Table(["layer", "n"], [[f"layer {n}", str(n)] for n in range(100)])
    assert len(repr(table).splitlines()) == 22 and '<th scope="col">layer</th>' in as_html(table)
    assert repr(Table(["a"], [["1", "2"]])) == "Table(['a'], 1 rows, some of other lengths than the header)"
    section = Section("Layers", "one two", table, Picture("folder/p.png", "layers"))
    assert repr(section) == "Section('Layers', text of 2 words, table of 100 rows, picture p.png)"


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    return figures


def rows_of(path):
    return list(csv.reader(path.read_text().splitlines()))


def test_picture(tmp_path, drawn, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    series = {"ticket": {0.0: [0.9, 0.92], 0.5: [0.91, 0.93]}, "control": {0.5: [0.8]}}
    plot_against_density(tmp_path / "p.png", series, ylabel="accuracy", title="t")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules  # it would choose a backend for the whole process
    (axes,) = drawn[0].axes
    ticket, control = (line.get_xydata().tolist() for line in axes.lines[:2])
    assert axes.lines[2].get_ydata() == [pytest.approx(0.91)] * 2  # the dense line
    assert ticket == [[100, pytest.approx(0.91)], [50, pytest.approx(0.92)]] and control == [[50, 0.8]]
    band, spread = axes.collections[0].get_datalim(axes.transData), 0.01 * 2**0.5
    assert (band.y0, band.y1) == (pytest.approx(0.91 - spread), pytest.approx(0.92 + spread))
    assert axes.get_xscale() == "log" and axes.xaxis_inverted() and not axes.get_xticks(minor=True).size
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "50"]
    assert (axes.get_ylabel(), axes.get_title()) == ("accuracy", "t")
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["ticket, 2 seeds", "control, one seed", "dense"]
    numbers = [["ticket", "0.0", "0", "0.9"], ["ticket", "0.0", "1", "0.92"], ["ticket", "0.5", "0", "0.91"]]
    assert rows_of(tmp_path / "p.csv")[:4] == [["series", "sparsity", "run", "accuracy"], *numbers]


def test_a_number_that_is_small_is_not_a_zero():
    numbers = [0.97516, 0.00085, -0.00003, 0.0, 12.0, None]
    assert [number_text(number) for number in numbers] == ["0.9752", "0.00085", "-3e-05", "0", "12.0000", "-"]


def test_ticks_lie_at_the_levels_and_those_without_room_are_left_out(tmp_path, drawn):
    plot_against_density(tmp_path / "p.png", {"t": {s: [0.5] for s in (0, 0.4, 0.9, 0.91, 0.995)}}, ylabel="loss")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "60", "10", "0.5"]
    assert axes.get_xlabel() == "weights kept (%)"


@pytest.mark.parametrize("percent", [True, False])
@pytest.mark.parametrize("noise", [0.02, None])
def test_the_noise_around_dense_is_in_sight(tmp_path, drawn, percent, noise):
    series = {"t": {0.0: [0.975], 0.5: [0.974]}}
    plot_against_density(tmp_path / "p.png", series, ylabel="accuracy", percent=percent, noise=noise)
    (axes,) = drawn[0].axes
    low, high = axes.get_ylim()
    assert (low < 0.955 and high > 0.995) == bool(noise)
    assert ("noise around dense" in [text.get_text() for text in axes.get_legend().get_texts()]) == bool(noise)
    assert axes.get_ylabel() == ("accuracy (%)" if percent else "accuracy")
    ticks = [float(label.get_text()) for label in axes.get_yticklabels()]
    assert (max(ticks) > 90) == percent


@pytest.mark.parametrize("percent", [True, False])
def test_fractions_are_drawn_in_percent_from_zero_on(tmp_path, drawn, percent):
    plot_barriers(tmp_path / "b.png", {"a": {0.0: 0.3, 1.0: 0.4}}, percent=percent)
    plot_norm_path(tmp_path / "n.png", {"a": {0.0: 0.3, 1.0: 0.4}}, ylabel="error", percent=percent)
    for figure in drawn:
        (axes,) = figure.axes
        assert (axes.get_ylim()[0] == 0) == percent
        assert axes.get_ylabel() == ("error (%)" if percent else "error")


def test_picture_of_a_match(tmp_path, drawn):
    plot_match(tmp_path / "m.png", {"a": (0.1, 0.7), "b": (0.0, 0.5)}, score="correlation", title="t")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[0.1, 0.0], [0.7, 0.5]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [bars[0].get_hatch() for bars in axes.containers] == ["", "///"]  # without colour
    assert rows_of(tmp_path / "m.csv") == [
        ["group", "as_they_were", "matched"], ["a", "0.1", "0.7"], ["b", "0.0", "0.5"]
    ]  # fmt: skip


def test_empty_rows():
    entry = torch.ones(6, 2, 3, dtype=torch.bool)
    entry[1:4] = False
    entry[5, 0] = False
    mask = {"q.weight": entry, "fc.weight": entry, "fc.bias": torch.zeros(6, dtype=torch.bool)}
    found = empty_rows(mask, heads={"^q": 3, "q": 2, "value": 5})
    assert found == {"q.weight": EmptyRows(6, (1, 2, 3), 3, (1,)), "fc.weight": EmptyRows(6, (1, 2, 3))}
    assert empty_rows(mask, exclude="^q") == {"fc.weight": found["fc.weight"]} == empty_rows(mask, include="fc.weight")
    assert repr(found["q.weight"]) == "EmptyRows(3 of 6 neurons, 1 of 3 heads)"
    assert repr(found).splitlines()[1].split() == ["q.weight", "3", "6", "1", "3"]
    with pytest.raises(ValueError, match=r"the rows of 'q.weight' must be divisible among its heads; received 6 rows"):
        empty_rows(mask, heads={"^q": 4})
    with pytest.raises(ValueError, match="include must match the name of a parameter; received 'none'"):
        empty_rows(mask, include="none")


def test_picture_of_the_layers(tmp_path, drawn):
    dead = {"q": EmptyRows(8, (1, 2), 4, (0, 1)), "fc": EmptyRows(4, ())}
    plot_layers(tmp_path / "l.png", {"q": 0.5, "fc": 0.25}, dead=dead, title="t")
    (axes,) = drawn[0].axes
    assert [bar.get_width() for bar in axes.patches] == [50, 25]
    neurons, heads = axes.lines
    assert (neurons.get_xdata().tolist(), heads.get_xdata().tolist()) == ([25], [50])
    assert neurons.get_marker() != heads.get_marker() and neurons.get_ydata()[0] != heads.get_ydata()[0]
    assert [text.get_text() for text in axes.texts] == ["2/8 neurons · 2/4 heads", ""]
    assert rows_of(tmp_path / "l.csv")[1:] == [["q", "0.5", "2", "8", "2", "4"], ["fc", "0.25", "0", "4", "0", "0"]]
    plot_layers(tmp_path / "l.png", {"q": 0.5}, title="t")
    assert not drawn[1].axes[0].lines and not drawn[1].legends


@pytest.mark.parametrize(
    ("plot", "x"),
    [
        (lambda *a: plot_barriers(*a, ylabel="y", title="t"), "alpha"),
        (lambda *a: plot_norm_path(*a, ylabel="y", title="t"), "alpha"),
        (lambda *a: plot_sign_flips(*a, title="t"), "level"),
    ],
    ids=["barriers", "norm path", "sign flips"],
)
def test_pictures_of_curves(tmp_path, drawn, plot, x):
    plot(tmp_path / "c.png", {"before": {0: 0.5, 1: 0.503}, "after": {0: 0.5, 1: 0.5}})
    (axes,) = drawn[0].axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0, 0.5], [1, 0.503]], [[0, 0.5], [1, 0.5]]]
    low, high = axes.get_ylim()
    assert high - low > 0.0099  # noise does not fill the picture
    assert all(tick == int(tick) for tick in axes.get_xticks())
    rows = rows_of(tmp_path / "c.csv")
    assert rows[0][:2] == ["series", x] and rows[1:3] == [["before", "0", "0.5"], ["before", "1", "0.503"]]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_picture_of_the_overlap(tmp_path, drawn):
    plot_overlap(tmp_path / "o.png", {"fc1": {"1 and 2": 0.25, "1 and 3": 0.75}, "fc2": {"1 and 3": 1.0}}, title="t")
    axes = drawn[0].axes[0]
    image = axes.images[0].get_array()
    assert image.filled(-1).tolist() == [[0.25, 0.75], [-1, 1]] and axes.images[0].get_cmap().name == "viridis"
    assert [text.get_text() for text in axes.texts] == ["0.25", "0.75", "1.00"]
    assert rows_of(tmp_path / "o.csv")[1:] == [
        ["fc1", "1 and 2", "0.25"], ["fc1", "1 and 3", "0.75"], ["fc2", "1 and 3", "1.0"]
    ]  # fmt: skip


def test_picture_of_a_plane(tmp_path, drawn):
    places = ((0.0, 0.0), (2.0, 0.0), (1.0, 1.0))
    errors = ((0.0, 1.0, 2.0), (1.0, math.inf, 3.0))
    plane = Plane(places, (0.0, 1.0, 2.0), (0.0, 1.0), errors)
    plot_plane(tmp_path / "p.png", plane, labels=("a", "$b", "c"), measure="loss", title="t")
    axes, bar = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == ["a", "$b", "c"]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0, 0]], [[2, 0]], [[1, 1]]]
    assert (axes.get_title(), bar.get_ylabel(), axes.collections[0].get_cmap().name) == ("t", "loss", "viridis")
    rows = rows_of(tmp_path / "p.csv")
    assert rows[6] == ["2.0", "1.0", "3.0", ""] and rows[-2] == ["2.0", "0.0", "", "$b"] and len(rows) == 1 + 6 + 3
    plot_plane(tmp_path / "p.png", Plane(places, (0.0, 1.0), (0.0, 1.0), ((1e6, 1e6), (1e6, 1e6))))  # flat


def test_a_plane_that_cannot_be_drawn(tmp_path):
    places = ((0.0, 0.0), (2.0, 0.0), (1.0, 1.0))
    for errors, message in (
        (((1.0, 2.0),), r"a row of errors for each y .* received shape \(1, 2\) for 2 and 2"),
        (((math.nan,) * 2,) * 2, "a plane must have finite errors"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_plane(tmp_path / "p.png", Plane(places, (0.0, 1.0), (0.0, 1.0), errors))
    with pytest.raises(ValueError, match="zip"):
        plot_plane(tmp_path / "p.png", Plane(places, (0.0, 1.0), (0.0, 1.0), ((1.0, 2.0),) * 2), labels=("a", "b"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("empty", [{}, {"a": {}}])
def test_nothing_to_draw(tmp_path, empty):
    with pytest.raises(ValueError, match="must not be empty"):
        plot_barriers(tmp_path / "n.png", empty, title="t")
    assert not list(tmp_path.iterdir())


def test_hostile_names_and_settings_do_no_harm(tmp_path, drawn):
    """A dollar sign would start a formula, an underscore hide a curve, a dark style paint white on white."""
    with matplotlib.rc_context({"text.color": "white", "axes.labelcolor": "white"}):
        curves = {"_hidden": {0.0: 1.0}, "$\\frac{$": {0.0: 2.0}}
        plot_barriers(tmp_path / "h.png", curves, title="$\\undefined{$")
        assert matplotlib.rcParams["text.color"] == "white"
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [" _hidden", "$\\frac{$"]
    assert axes.title.get_color() == "black" and drawn[0].get_facecolor() == (1, 1, 1, 1)


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_curves_differ_without_colour_and_colours_show_on_white():
    styles = [curve_style(number) for number in range(28)]
    for one, other in itertools.combinations(styles, 2):
        assert one["marker"] != other["marker"] or one["linestyle"] != other["linestyle"]
    assert all(1.05 / (luminance(color) + 0.05) > 2 for color in COLORS)
