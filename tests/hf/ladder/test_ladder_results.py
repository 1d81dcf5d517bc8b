"""Numbers, tables and pictures of ladders."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_ladders import ROOT

from hf_lottery.hf.ladder import show
from hf_lottery.hf.ladder.picture import sections
from hf_lottery.hf.ladder.results import about, commit, write_results
from hf_lottery.hf.ladder.table import (
    COMPARED,
    comparison,
    difference_table,
    label,
    ladder_table,
    match_table,
    obtained,
)
from hf_lottery.report import markdown_table

RESULT = {"minus_naive": 1.5, "half_width": 0.5, "gap_closed": [0.5, 0.25, 0.75], "barrier": None, "sparsity": 0.5}
RESULT |= {
    "match_seconds": None,
    "dense_barrier": None,
    "overlap": 0.25,
    "chance": 0.125,
    "correlation": 0.5,
    "kept_signs": None,
}


def results_of(rows, measure="accuracy", **more):
    """Results of a ladder as a file holds them."""
    place = {"point": "", "command": "recipes/transfer_ladder.py", "commit": "abc", "device": "a machine"}
    place |= {"date": "today", "torch": "2", "transformers": "5"}
    seconds = {"cpu_seconds": 1.0, "cpu_with_needs": 2.0}
    found = {row: RESULT | seconds | {"values": values} for row, values in rows.items()}
    return {"title": "T", "about": place, "measure": measure, "seconds": "CPU", "seeds": [0, 1], "rows": found} | more


def test_numbers_are_those_of_the_cells(computed, tmp_path):
    results = write_results(computed)
    ladder = computed.ladder
    cells = {str(cell): ladder.result(cell) for cell in ladder.cells}
    assert json.loads((ladder.folder / "ladder.json").read_text()) == results
    assert list(results["rows"]) == ["lth", "naive", "permuted_activation", "lrr", "lrr_signs_norms"]
    for row, found in results["rows"].items():
        pair = [cells[f"{row}-{seed}"] for seed in (0, 1)]
        assert found["values"] == [100 * cell["measure"] for cell in pair]
        naive = results["rows"]["naive"]["values"]
        assert found["minus_naive"] == pytest.approx(np.mean(found["values"]) - np.mean(naive))
        assert found["sparsity"] == pytest.approx(0.3, abs=1e-3)
        assert (found["barrier"] is None) == (row in ("lth", "lrr"))
        assert found["with_needs"] > found["seconds"] == np.mean([cell["seconds"] for cell in pair])
    found = results["rows"]["permuted_activation"]
    group, (identity, matched) = next(iter(found["match"].items()))
    assert [identity, matched] == pytest.approx(
        np.mean([cells[f"permuted_activation-{seed}"]["match"][group] for seed in (0, 1)], axis=0)
    )
    assert [group, f"{identity:.2f}", f"{matched:.2f}"] in [row[1:] for row in match_table(results).rows]
    norms = [100 * cells[f"search_lrr-{seed}"]["initial_norms"] for seed in (0, 1)]
    assert results["rows"]["lrr"]["initial_norms"] == pytest.approx(np.mean(norms))
    assert results["rows"]["naive"]["match"] is results["rows"]["naive"]["initial_norms"] is None
    titles = [section.title for section in sections([results], tmp_path)]
    name = "ResNet-8 on MNIST-1D"
    assert titles == [name, f"Numbers: {name}", f"Paired differences: {name}", f"Similarity of units: {name}"]
    assert (tmp_path / "ladder.png").stat().st_size > 5000


def test_a_column_appears_where_a_row_has_its_number():
    results = results_of({"naive": [1.0, 2.0], "lrr": [2.0, 3.0]})
    table = ladder_table(results)
    assert table.header[1] == "accuracy" and table.header[-2:] == ["CPU s", "with what it needs"]
    assert "initial norms" not in table.header
    results["rows"]["lrr"]["initial_norms"] = 71.234
    more = ladder_table(results)
    assert [row[more.header.index("initial norms")] for row in more.rows] == ["-", "71.23"]
    assert len(more.header) == len(table.header) + 1 == len(more.rows[0])


def test_a_pair_of_rows_is_compared_by_target():
    results = results_of({"lth": [3.0, 5.0], "naive": [1.0, 4.5]}, pairs=["lth-naive"])
    (row,) = difference_table(results).rows
    assert row == ["lth - naive", "+1.25 ± 9.53", "2 of 2"]  # 12.706 times 0.75
    (back,) = difference_table(results, ["naive-lth"]).rows
    assert back == ["naive - lth", "-1.25 ± 9.53", "0 of 2"]
    assert difference_table(results_of({"naive": [1.0, 2.0]})).rows == []
    with pytest.raises(ValueError, match="pairs must name rows of the ladder, lth, naive; received 'aws'"):
        difference_table(results, ["lth-aws"])
    with pytest.raises(ValueError, match="pairs must name two rows"):
        difference_table(results, ["lth-naive-lth"])


def test_losses_have_three_digits():
    results = results_of({"naive": [1.0, 2.0], "lth": [0.5, 1.5]}, measure="loss")
    assert ladder_table(results).rows[0][1] == "1.500 ± 0.707"
    assert difference_table(results, ["naive-lth"]).rows == [["naive - lth", "+0.500 ± 0.000", "2 of 2"]]


def test_a_comparison_leaves_out_what_no_ladder_has():
    both = [results_of({"naive": [1.0, 2.0], "lth": [1.0, 2.0]}), results_of({"naive": [1.0, 2.0], "random": [1, 2]})]
    assert comparison(both, "minus_naive").rows == [["lth", "+1.50 ± 0.50", "-"], ["random", "-", "+1.50 ± 0.50"]]
    wide = comparison(both, "gap_closed", ["lth"])  # more ladders than rows: they go below each other
    assert wide == (["gap closed", "lth"], [[label(both[0]), "50 % (25 to 75)"], [label(both[1]), "-"]])
    assert [line[1] for line in comparison(both, "measure", ["naive"]).rows] == ["1.50 ± 0.71"] * 2
    assert [line[1] for line in comparison(both, "overlap", ["naive"]).rows] == ["0.250 (0.125)"] * 2
    assert comparison(both, "barrier").rows == []
    assert set(COMPARED) <= {"pairs", "measure", *RESULT}


def test_pairs_are_compared_side_by_side():
    first, second = (results_of({"naive": [1.0, 2.0], "lth": [high, 4.0]}, pairs=["lth-naive"]) for high in (3.0, 4.0))
    table = comparison([first, second], "pairs")
    (one,), (two,) = difference_table(first).rows, difference_table(second).rows
    assert table.header == ["pairs", "lth - naive"] and [line[1] for line in table.rows] == [one[1], two[1]]


def test_results_are_shown_again(tmp_path, capsys):
    files = [ROOT / f"docs/ladder/short/mnist1d-{name}.json" for name in ("mlp", "conv")]
    show.main([str(files[0]), "--pairs", "aws_signs-aws_mask"])
    shown, results = capsys.readouterr().out, json.loads(files[0].read_text())
    assert shown.startswith("### LeNet-300-100 on MNIST-1D\n") and obtained(results) in shown
    assert markdown_table(*ladder_table(results)) in shown
    assert markdown_table(*difference_table(results, ["aws_signs-aws_mask"])) in shown
    picture = tmp_path / "both.png"
    show.main([*map(str, files), "--compare", "minus_naive", "--rows", "lth", "dense", "--picture", str(picture)])
    assert [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()][2:] == ["lth", "dense"]
    lines = picture.with_suffix(".csv").read_text().splitlines()
    assert lines[0] == "ladder,row,minus_naive,half_width" and len(lines) == 1 + 2 * 2
    assert picture.stat().st_size > 5000
    with pytest.raises(ValueError, match="pairs must name rows of the ladder"):
        show.main([str(files[0]), "--pairs", "lth-luck"])
    with pytest.raises(ValueError, match="rows must name rows of these ladders; received luck. There are: dense, lth"):
        show.main([str(files[0]), "--compare", "barrier", "--rows", "lth", "luck"])


@pytest.mark.parametrize(
    ("text", "received"),
    [(None, "No such file"), ("{", "Expecting property name"), ("[1]", "something else"), ('{"rows": {}}', "else")],
)
def test_files_that_are_no_ladders_are_refused(tmp_path, text, received):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=f"that hf-lottery ladder wrote.*{received}.*Check the path"):
        show.main([str(tmp_path / "a.json")])


@pytest.fixture
def repository(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    (tmp_path / "tracked.py").touch()
    git("init", "--quiet")
    git("add", "tracked.py")
    git("commit", "--quiet", "-m", "first")
    return tmp_path, git("rev-parse", "--short", "HEAD")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_a_repository_with_the_file(repository, tmp_path_factory, monkeypatch):
    folder, head = repository
    assert commit(folder / "tracked.py") == head
    installed = folder / ".venv/lib/package.py"  # the repository is around it, but does not hold it
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert commit(installed) is None
    assert commit(tmp_path_factory.mktemp("elsewhere") / "package.py") is None
    monkeypatch.setenv("PATH", "")
    assert commit(folder / "tracked.py") is None


def test_where_there_is_no_commit_the_version_is_told(computed, monkeypatch):
    monkeypatch.setattr("hf_lottery.hf.ladder.results.commit", lambda file: None)
    monkeypatch.setattr(sys, "argv", ["/x/transfer_ladder.py", "--output_dir", "/secret", "--seeds", "0", "1"])
    found = about(computed)
    assert found["commit"] is None and found["command"] == "recipes/transfer_ladder.py --seeds 0 1"
    text = obtained(results_of({"naive": [1.0, 2.0]}) | {"about": found})
    assert f"recipes/transfer_ladder.py --seeds 0 1 at version {found['version']} on " in text
    monkeypatch.setattr(sys, "argv", ["/bin/hf-lottery", "ladder", "--seeds", "0", "1"])
    assert about(computed)["command"] == "hf-lottery ladder --seeds 0 1"
