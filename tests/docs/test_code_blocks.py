"""Every block of code in the pages is tried: Python runs, commands are given to the parsers of what they call."""

import json
import re
import runpy
import subprocess
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from accelerate.commands.launch import launch_command_parser

from hf_lottery.hf.commands.main import main as hf_lottery_main
from hf_lottery.hf.commands.parser import RecipeParser
from hf_lottery.hf.commands.plain_parser import PlainParser

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for where in ("*.md", "docs/*.md", "docs/api/*.md", "recipes/*.md")
    for page in ROOT.glob(where)
)
PROGRAMS = ("accelerate", "git", "hf-lottery", "make", "pip", "pytest", "python")
# The blocks that are neither run nor parsed: page and first words -> why not.
EXEMPT = {
    ("README.md", "| at 96.00 % sparsity"): "what `make ticket` prints",
    ("README.md", "mask.save_pretrained("): "a sketch of calls; the quickstart and tests/hf/hub run them",
    ("docs/design.md", " networks       any torch"): "a drawing",
    ("docs/mask-format.md", "mask = n ones"): "pseudo-code; the reader in test_mask_format.py is made from it",
    ("docs/mask-format.md", "1 0 0        weights 0-7"): "a drawing of the example that test_mask_format.py reads",
}
# Commands of version 0.1, whose scripts are gone. The page says what replaces them.
FIRST_VERSION = ("recipes/three_trainings.py", "recipes/sign_transfer.py")


@dataclass(frozen=True)
class CodeBlock:
    page: str
    language: str
    text: str

    @property
    def exempt(self) -> list[tuple[str, str]]:
        return [(page, words) for page, words in EXEMPT if page == self.page and self.text.startswith(words)]

    @property
    def kind(self) -> str:
        if self.language == "python" or self.language == "json" or self.language.startswith("{"):
            return self.language
        first = re.sub(r"^(\w+=\S*\s+)+", "", self.text.lstrip()).split(maxsplit=1)[0]
        shell = self.language in ("bash", "sh") or first in (*PROGRAMS, "for") or re.match(r'\w+="', self.text)
        return "shell" if shell else "text"


class Parsed(BaseException):
    """A command line was understood; nothing after that is run."""


def blocks(page: str, text: str) -> list[CodeBlock]:
    found = re.findall(r"^( *)```([^\n`]*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [CodeBlock(page, language.strip(), re.sub(f"(?m)^{indent}", "", body)) for indent, language, body in found]


BLOCKS = [block for page in PAGES for block in blocks(page, (ROOT / page).read_text())]


def commands(text: str, folder: Path) -> list[list[str]]:
    """The command lines of a block as bash starts them: the programs that it finds only note how they were called."""
    for entry in ROOT.iterdir():
        (folder / entry.name).symlink_to(entry)
    programs = folder / ".programs"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).write_text('#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@" >> calls; printf "\\0" >> calls\n')
        (programs / name).chmod(0o755)
    (folder / "calls").write_text("")
    script = f"set -euo pipefail\ncd() {{ :; }}\n{text}"
    done = subprocess.run(
        ["/bin/bash", "-c", script], cwd=folder, env={"PATH": str(programs)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    calls = (folder / "calls").read_text().split("\0\0")
    return [call.split("\0") for call in calls if call]


def understand(call: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a command line to the parser of the program that it starts; raises unless the parser takes it."""
    program, *words = call
    if program == "accelerate":
        launch = launch_command_parser().parse_known_args(words[1:])[0]
        assert words[0] == "launch" and (launch.config_file is None or Path(launch.config_file).is_file()), call
        understand(["python", launch.training_script, *launch.training_script_args], monkeypatch)
    elif program == "python":
        start_python(words, monkeypatch)
    elif program == "hf-lottery":
        stop_after_parsing(hf_lottery_main, ["hf-lottery", *words])
    elif program == "make":
        assert set(words) <= set(re.findall(r"^([\w-]+):", Path("Makefile").read_text(), re.MULTILINE)), call
    elif program == "pip":
        assert words[0] == "install", call
        extras = set(re.findall(r"^(\w+) = \[\"", Path("pyproject.toml").read_text(), re.MULTILINE))
        assert {extra for word in words for extra in re.findall(r"(?<=[\[,])\w+", word)} <= extras, call
    elif program == "pytest":
        assert all(Path(word).exists() for word in words if word.startswith("tests")), call


def start_python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "-m":
        # The warning is of a module that this process has imported already.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            stop_after_parsing(lambda: runpy.run_module(words[1], run_name="__main__", alter_sys=True), words[1:])
    else:
        assert Path(words[0]).is_file(), words[0]
        monkeypatch.syspath_prepend(Path(words[0]).resolve().parent)  # as python does
        stop_after_parsing(lambda: runpy.run_path(words[0], run_name="__main__"), words)


def stop_after_parsing(run: Callable[[], object], command: list[str]) -> None:
    """Run a program until its command line is parsed, without the defaults that a ticket on the disk would give."""

    def stopping(parse):
        def parse_and_stop(self, arguments=None, **of_a_ticket):
            parse(self, arguments)
            raise Parsed

        return parse_and_stop

    parsers = ((ArgumentParser, "parse_args"), (PlainParser, "parse"), (RecipeParser, "parse"))
    with ExitStack() as patches, pytest.raises(Parsed):
        patches.enter_context(patch.object(sys, "argv", command))
        for parser, name in parsers:
            patches.enter_context(patch.object(parser, name, stopping(getattr(parser, name))))
        run()
        raise AssertionError(f"the command line must reach a parser; received {command}, which ended before")


def of_kind(kind: str) -> list:
    found = [block for block in BLOCKS if block.kind == kind]
    return [pytest.param(block, id=f"{block.page}-{block.text[:40]}") for block in found]


def pages_with_python() -> list:
    """The pages with code. One that trains with several Trainers takes many seconds."""
    pages = sorted({block.page for block in BLOCKS if block.kind == "python"})
    slow = {block.page for block in BLOCKS if "from trl" in block.text}
    return [pytest.param(page, marks=[pytest.mark.slow] * (page in slow)) for page in pages]


@pytest.mark.parametrize("page", pages_with_python())
@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
@pytest.mark.filterwarnings("ignore:.*(gradient_checkpointing|frozen parameters):")  # of PEFT and trl
def test_python_runs(page, tmp_path, monkeypatch, request):
    code = "\n".join(block.text for block in BLOCKS if block.page == page and block.kind == "python")
    if "from trl" in code:
        pytest.importorskip("trl")  # it needs Python 3.11
    if "push_to_hub(" in code:
        request.getfixturevalue("hub")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("block", of_kind("shell"))
def test_commands_are_understood(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in commands(block.text, tmp_path):
        if not any(script in call for script in FIRST_VERSION):
            understand(call, monkeypatch)


@pytest.mark.parametrize("block", of_kind("json"))
def test_json_is_json(block):
    json.loads(block.text)


def test_nothing_is_exempt_but_what_is_listed():
    texts = [block for block in BLOCKS if block.kind == "text"]
    assert not [(block.page, block.text[:30]) for block in texts if not block.exempt]
    assert {key for block in texts for key in block.exempt} == set(EXEMPT)
    assert {block.kind for block in BLOCKS} <= {"python", "shell", "json", "text", "{eval-rst}"}


def test_every_script_of_the_first_version_is_gone_and_still_named():
    text = "".join(block.text for block in BLOCKS)
    assert all(script in text and not (ROOT / script).exists() for script in FIRST_VERSION)


@pytest.mark.parametrize(
    "text",
    [
        "accelerate launch recipes/find_ticket.py --config recipes/digits/imp.yaml --sparsty 0.9",
        "accelerate launch recipes/find_ticket.py --config recipes/digits/gone.yaml",
        "accelerate launch --config_file recipes/accelerate/gone.yaml recipes/find_ticket.py",
        "python recipes/gone.py",
        "hf-lottery show docs/ladder/signs/*.json --compare nothing",
        "for seed in 0 1; do python recipes/transfer_ladder.py --seeds $seed --row lth; done",
        "hf-lottery inspct outputs/ticket",
        "make tickets",
        'pip install -e ".[recpies]"',
        "pytest tests/gone.py",
        "nonsense --flag",
        "python recipes/find_ticket.py --output_dir 'a",
    ],
)
def test_a_command_that_is_wrong_is_found(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, SystemExit, ModuleNotFoundError)):
        for call in commands(text, tmp_path):
            understand(call, monkeypatch)


def test_blocks_of_any_kind_are_found():
    text = (
        "A.\n\n```python\n1\n```\n- B:\n  ```\n  OMP=1 make test\n  ```\n\n```\n| a |\n```\n\n```{eval-rst}\n..\n```\n"
    )
    assert [block.kind for block in blocks("page", text)] == ["python", "shell", "text", "{eval-rst}"]
    assert blocks("page", text)[1].text == "OMP=1 make test\n"
