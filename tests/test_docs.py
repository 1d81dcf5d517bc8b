"""What README and quickstart show runs as it stands, and their links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/symmetry.md"])
@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    exec("\n".join(blocks), {"__name__": "page"})


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=str
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_tables_of_ladders_are_those_of_their_files(page):
    text = (ROOT / page).read_text()
    commands = re.findall(r"^python (-m hf_lottery\.hf\.ladder\.show (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        command = re.sub(r" --picture \S+", "", command)
        shown = subprocess.run(
            f"{sys.executable} {command}", shell=True, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        tables = re.findall(r"(?:^\|.*\n)+", shown, re.MULTILINE)
        assert tables and all(table in text for table in tables), command


def test_the_readme_is_short_and_starts_with_python():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    assert lines.index("```python") < 20
