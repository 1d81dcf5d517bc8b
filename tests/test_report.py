import sys

import pytest
from matplotlib.figure import Figure

from hf_lottery import level_table, markdown_table, plot_against_density, plot_match


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
    assert rows[2].split() == ["|", "0", "|", "0.0000", "|", "0.5000", "|", "1.2500", "|"]
    assert rows[3].split() == ["|", "1", "|", "0.2000", "|", "-", "|", "2.0000", "|"]
    assert rows[4].split() == ["|", "2", "|", "0.3000", "|", "0.0000", "|", "-", "|"]


def test_picture(tmp_path, monkeypatch):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k)))
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    series = {"ticket": {0.0: [0.9, 0.92], 0.5: [0.91, 0.93]}, "control": {0.5: [0.8]}}
    plot_against_density(tmp_path / "p.png", series, ylabel="accuracy", title="t")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules  # it would choose a backend for the whole process
    (axes,) = drawn[0].axes
    ticket, control = (line.get_xydata().tolist() for line in axes.lines)
    assert ticket == [[100, pytest.approx(0.91)], [50, pytest.approx(0.92)]] and control == [[50, 0.8]]
    band, spread = axes.collections[0].get_datalim(axes.transData), 0.01 * 2**0.5
    assert (band.y0, band.y1) == (pytest.approx(0.91 - spread), pytest.approx(0.92 + spread))
    assert axes.get_xscale() == "log" and axes.xaxis_inverted() and not axes.get_xticks(minor=True).size
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "50"]
    assert (axes.get_ylabel(), axes.get_title()) == ("accuracy", "t")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ticket", "control"]


def test_picture_of_a_match(tmp_path, monkeypatch):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k)))
    plot_match(tmp_path / "m.png", {"a": (0.1, 0.7), "b": (0.0, 0.5)}, score="correlation", title="t")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[0.1, 0.0], [0.7, 0.5]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
