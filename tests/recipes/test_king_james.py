"""The King James Bible as data for the recipes."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "recipes/king_james/prepare.py"
VERSES = """Ge1:1 In the beginning God created the heaven and the earth.
Ge5:2 Male, and "female" created he them;
1Sm15:1 Samuel also said unto Saul.
Rev22:21 Amen.
"""


def test_the_program_is_asked_and_chapters_are_held_out(tmp_path):
    program = tmp_path / "bin/bible"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nassert sys.argv[1:] == ['-f', 'gen1:1-rev22:21']\nprint({VERSES!r}, end='')\n"
    )
    program.chmod(0o755)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out")]
    subprocess.run(command, check=True, env={"PATH": str(program.parent)})
    assert (tmp_path / "out/verses/train.txt").read_text().splitlines() == [
        "In the beginning God created the heaven and the earth.", "Amen.",
    ]  # fmt: skip
    with (tmp_path / "out/books/test.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["text", "label"],
            ['Male, and "female" created he them;', "law"],
            ["Samuel also said unto Saul.", "history"],
        ]
    missing = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True)
    assert missing.returncode == 1 and "`apt-get install bible-kjv bible-kjv-text`" in missing.stderr


@pytest.mark.parametrize("line", ["Ge1 In the beginning", "Tobit1:1 The book of the words of Tobit"])
def test_what_is_no_verse_is_told(line, tmp_path):
    spec = importlib.util.spec_from_file_location("prepare", SCRIPT)
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    with pytest.raises(ValueError, match=rf"a line must be a verse of a known book.*received '{line[:10]}"):
        prepare.write(tmp_path, line)
