"""The pages: their tables and links are whole, and the names that they list can be imported."""

import contextlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest
import yaml

from hf_lottery import __version__
from hf_lottery.hf.ladder import show

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(page.relative_to(ROOT))
    for where in ("*.md", "docs/*.md", "docs/api/*.md", "recipes/*.md")
    for page in ROOT.glob(where)
)
FILES_OF_THE_FIRST_VERSION = {
    f"recipes/{name}"
    for name in (
        "compare_levels.py", "show_ladders.py", "sign_transfer.py", "three_trainings.py", "mnist1d/ladder_conv.yaml",
    )
}  # fmt: skip
BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
SEPARATOR = re.compile(r"\|(\s*:?-+:?\s*\|)+")


def read(page: str) -> str:
    return (ROOT / page).read_text()


def columns(row: str) -> int:
    """The number of cells in a row of a table. A bar is part of a cell's text only after a backslash, even in code."""
    return row.replace(r"\|", "").strip().strip("|").count("|")


def broken_tables(text: str) -> list[str]:
    """Blocks of a page that hold rows of a table and would not be shown as one: each with its first line."""
    found = []
    for block in re.split(r"\n\s*\n", BLOCK.sub("", text)):
        rows = block.strip("\n").splitlines()
        if any(row.lstrip().startswith("|") for row in rows) and not (
            len(rows) > 2
            and all(row.startswith("|") and row.endswith("|") for row in rows)
            and SEPARATOR.fullmatch(rows[1])
            and len({columns(row) for row in rows}) == 1
        ):
            found.append(rows[0])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", read(page)) + re.findall(r'src="([^"]+)"', read(page)):
        assert target.startswith("http") or (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_files_and_modules_that_a_page_names_exist(page):
    text = read(page)
    for name in re.findall(r"(?<![\w/])(?:recipes|tests|hf_lottery)/[\w/]+\.(?:py|yaml|json|sh|md)\b", text):
        assert (ROOT / name).exists() or name in FILES_OF_THE_FIRST_VERSION, name
    for name in re.findall(r"-m (hf_lottery[\w.]*)", text):
        assert importlib.util.find_spec(name), name


@pytest.mark.parametrize("page", PAGES)
def test_every_table_is_shown_as_one(page):
    assert not broken_tables(read(page))


@pytest.mark.parametrize(
    "table",
    [
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |\n",
        "| a | b |\n| 1 | 2 |\n",
        "| a | b |\n|---|---|\n| 1 | 2 | 3 |\n",
        "| a | b |\n|---|---|\n| 1 | 2 |\nText.\n",
        "| a | b |\n|---|---|\n| 1 | `2 | 3` |\n",
    ],
)
def test_a_broken_table_is_found(table):
    assert broken_tables(table)
    assert not broken_tables(f"```\n{table}```\n")
    assert not broken_tables(r"| a | b |" "\n|---|---|\n" r"| 1 | `2 \| 3` |" "\n")


def test_no_line_of_the_readme_is_longer_than_120_characters():
    assert [line for line in read("README.md").splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/ladders.md", "docs/results-short.md"])
def test_tables_of_ladders_are_those_of_their_files(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = read(page)
    commands = re.findall(r"^hf-lottery show ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(re.sub(r" --picture \S+", "", command).replace("\\\n", ""), comments=True)
        names = [str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])]
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            show.main(names)
        tables = re.findall(r"(?:^\|.*\n)+", shown.getvalue(), re.MULTILINE)
        assert tables and all(table in text for table in tables), command


def test_names_of_the_first_version_are_where_the_changelog_says():
    moved = read("docs/changelog.md").split("### Where the names are now")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `(hf_lottery[\w.]*)` \| (.*) \|$", moved, re.MULTILINE)
    names = {}
    for place, cell in rows:
        for old, new in re.findall(r"`(\w+)`(?: \(was `(\w+)`\))?", cell):
            assert hasattr(importlib.import_module(place), old), f"{place}.{old}"
            names[new or old] = place
    assert len(names) == 106


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == __version__
    assert {paper["identifiers"][0]["value"] for paper in citation["references"]} == {
        "arXiv:2504.05357",
        "arXiv:2505.05143",
    }
