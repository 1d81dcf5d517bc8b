"""One line for what the user can mend, a traceback for a fault."""

import json
from pathlib import Path

import pytest

from hf_lottery import Mask
from hf_lottery.hf.commands.errors import command, one_line


def caught(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: Mask({}), "a mask must cover at least one weight; received 0 entries without any."),
        (lambda: Mask({"a": 1}), "the mask of 'a' must be a bool tensor; received int. Try `weight != 0`."),
        (lambda: Path("/no/where").read_bytes(), "[Errno 2] No such file or directory: '/no/where'"),
        (lambda: __import__("nonsense"), "No module named 'nonsense'"),
        (lambda: json.loads("["), None),  # raised by another library, for which there is no advice
        (lambda: Mask.dense({"a": None}), None),  # a slip inside this one
        (lambda: {}["x"], None),
    ],
)
def test_what_is_one_line(call, line):
    assert one_line(caught(call)) == line


def test_a_command_ends_with_one_line_or_with_a_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/recipe.py"])

    @command
    def two_lines():
        raise OSError("first\nsecond")

    @command
    def fault():
        raise KeyError("x")

    with pytest.raises(SystemExit, match="^recipe.py: error: first second$"):
        two_lines()
    with pytest.raises(KeyError):
        fault()
