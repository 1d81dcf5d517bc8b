"""Benchmarks: one way to measure, one command that runs all of them, and a page that is written table by table."""

import ast
import importlib
import re
import subprocess
import sys

import pytest
from recipe_runs import ROOT

BENCHMARKS = ROOT / "recipes" / "benchmarks"
HELPERS = {"all", "timing", "plain_matching", "small_networks"}  # they measure nothing themselves
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


@pytest.fixture
def runner(monkeypatch):
    """The module all.py, as its own folder sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("all")


def test_all_of_them_are_run_by_one_command(runner):
    assert set(runner.PARTS) == {*SCRIPTS} - HELPERS


@pytest.mark.parametrize("name", sorted({*SCRIPTS} - HELPERS))
def test_a_benchmark_has_a_table_and_does_not_measure_in_a_way_of_its_own(name):
    text = (BENCHMARKS / f"{name}.py").read_text()
    body = ast.parse(text).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    assert "quick" in {argument.arg for argument in functions["rows"].args.kwonlyargs}
    assert any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HEADER" for node in body)
    # A step of "A Winning Sign" and of a mask is timed inside, at its ends, where nothing can be called.
    assert "process_time" not in text or name in ("aws_step", "masked_step")


def test_a_section_takes_the_place_of_its_own_and_no_other(runner):
    page = runner.replaced("# Results\n\ntext\n", "a", "old \\1 of a")
    page = runner.replaced(page, "ab", "of ab")
    again = runner.replaced(page, "a", "new of a")
    assert again.count("new of a") == again.count("of ab") == 1 and "old" not in again
    assert again.startswith("# Results\n\ntext\n") and again.index("new of a") < again.index("of ab")
    assert runner.replaced(again, "a", "new of a") == again


def test_one_that_fails_is_named_and_leaves_the_page(runner, monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("as it was\n")
    monkeypatch.setattr(runner, "PARTS", {"no_such_benchmark": "None"})
    monkeypatch.setattr("sys.argv", ["all.py", "--quick", "--output", str(page)])
    with pytest.raises(SystemExit, match="1 of 1 benchmarks failed: no_such_benchmark"):
        runner.main()
    assert "no_such_benchmark failed: ModuleNotFoundError" in capsys.readouterr().err
    assert page.read_text() == "as it was\n"


@pytest.mark.slow
def test_all_of_them_run(tmp_path):
    page = tmp_path / "page.md"
    command = [sys.executable, str(BENCHMARKS / "all.py"), "--quick", "--output", str(page)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    text = page.read_text()
    for name in {*SCRIPTS} - HELPERS:
        section = re.search(f"<!-- benchmark {name} -->(.*?)<!-- end of benchmark {name} -->", text, re.DOTALL)
        assert section and section[1].count("\n|") >= 3, name
