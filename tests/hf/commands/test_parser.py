"""RecipeParser: defaults from YAML files, options from the command line, and mistakes in either."""

import sys
from dataclasses import dataclass, field

import pytest
from transformers.utils import logging

from hf_lottery import LotteryArguments
from hf_lottery.hf.commands.parser import RecipeParser


@dataclass
class Small:
    name: str = field(default="none")
    names: list[str] = field(default_factory=list)
    fast: bool = field(default=True)
    needed: int = field(default=0)


def parse(*arguments):
    return RecipeParser([Small, LotteryArguments]).parse([*arguments])


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        (tmp_path / "file.yaml").write_text(text)
        return str(tmp_path / "file.yaml")

    return write


def test_yaml_gives_defaults_and_the_command_line_wins(yaml_file):
    path = yaml_file("learning_rate: 1e-3\nsparsity: 0.5\nname: yaml\nnames: [a, b]\nfast: false\nuse_cpu: true\n")
    small, args = parse("--config", path, "--name", "line", "--sparsity", "0.9")
    assert (args.learning_rate, args.sparsity, args.use_cpu) == (0.001, 0.9, True)
    assert (small.name, small.names, small.fast) == ("line", ["a", "b"], False)
    small, args = parse(f"--config={path}", "--names", "c", "--fast")
    assert (small.names, small.fast, args.sparsity) == (["c"], True, 0.5)


@pytest.mark.parametrize("text", ["dataloader_pin_memory: false", "dataloader_pin_memory: no"])
def test_a_flag_that_is_on_by_default_can_be_put_off(yaml_file, text):
    assert parse("--config", yaml_file(text))[1].dataloader_pin_memory is False


def test_numbers_become_what_their_field_holds(yaml_file, capsys):
    small, args = parse("--config", yaml_file("name: 5\nlearning_rate: 1\nneeded: 2\n"))
    assert (small.name, small.needed) == ("5", 2) and type(args.learning_rate) is float
    assert "invalid int value: '1.5'" in fails(capsys, "--config", yaml_file("needed: 1.5"))


def test_a_file_gives_what_has_no_default(yaml_file, capsys):
    @dataclass
    class Strict:
        needed: int

    parser = RecipeParser([Strict])
    assert parser.parse(["--config", yaml_file("needed: 3")]) == (Strict(3),)
    with pytest.raises(SystemExit):
        RecipeParser([Strict]).parse([])
    assert "arguments are required: --needed" in capsys.readouterr().err


def test_the_command_line_is_the_default_and_no_other_file_is_read(tmp_path, monkeypatch):
    (tmp_path / "script.args").write_text("--name file --sparsity 0.9")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "script.py"), "--needed", "4"])
    small, args = RecipeParser([Small, LotteryArguments]).parse()
    assert (small.needed, small.name, args.sparsity) == (4, "none", None)


def test_a_later_file_wins(yaml_file, tmp_path):
    (tmp_path / "second.yaml").write_text("sparsity: 0.7")
    path = yaml_file("sparsity: 0.5\nname: first")
    small, args = parse("--config", path, "--config", str(tmp_path / "second.yaml"))
    assert (args.sparsity, small.name) == (0.7, "first")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsty", "0.5"], "received sparsty (nearest: sparsity)"),
        (["--spars", "0.5"], "received spars (nearest: sparsity)"),
        (["--learning-rat", "1"], "received learning-rat (nearest: learning_rate)"),
        (["loose"], "every value must belong to a flag; received 'loose'"),
        (["--sparsity", "80"], "sparsity must be in [0, 1); received 80.0"),
        (["--sparsity", "many"], "invalid float value: 'many'"),
        (["--sparsity", "0.5", "--levels", "3"], "exactly one of sparsity and levels must be given"),
        (["--levels", "0"], "levels must be at least 1; received 0"),
        (["--rewind", "late"], "rewind must be init, step:K"),
        (["--score", "l1"], "score must be one of magnitude, movement, random, saliency, wanda; received 'l1'"),
        (["--schedule", "linear"], "schedule must be one of cubic, geometric, one_shot; received 'linear'"),
        (["--scope", "local"], "scope must be one of erk, global, uniform or N:M, such as 2:4; received 'local'"),
        (["--scope", "2:4x"], "or N:M, such as 2:4; received '2:4x'"),
        (["--scope", "4:2"], "received n=4, m=2"),
        (["--pruning_fraction", "1", "--levels", "2"], "pruning_fraction must be in (0, 1); received 1.0"),
        (["--score_batches", "0"], "score_batches must be at least 1; received 0"),
        (["--config"], "--config must name a YAML file; received nothing"),
        (["--config", "no.yaml"], "received no.yaml, which does not exist"),
    ],
)
def test_bad_command_lines(capsys, arguments, message):
    error = fails(capsys, *arguments)
    assert message in error and len(error.splitlines()) <= 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsty: 0.5", "must hold known keys; received sparsty (nearest: sparsity)"),
        ("config: other.yaml", "received config"),
        ("help: true", "received help"),
        ("qqqq: 1", "received qqqq."),
        ("- a", "must hold keys and values; received list"),
        ("a: [", "must be YAML"),
        ("sparsity: much", "invalid float value: 'much'"),
    ],
)
def test_bad_files(capsys, yaml_file, text, message):
    error = fails(capsys, "--config", yaml_file(text))
    assert message in error and error.count("\n") == 1


def test_the_least_that_is_allowed():
    args = parse("--score_batches", "1", "--levels", "1", "--scope", "2:4")[1]
    assert (args.score_batches, args.get_sparsities()) == (1, [0.0, 0.2])


def test_an_empty_file_changes_nothing(yaml_file):
    assert parse("--config", yaml_file(""))[1].sparsity is None


@pytest.mark.parametrize("line", [["--levels", "3"], ["--levels=3"]])
def test_a_flag_rules_out_the_files_alternative(yaml_file, line):
    args = parse("--config", yaml_file("sparsity: 0.5"), *line)[1]
    assert (args.levels, args.sparsity) == (3, None)
    args = parse("--config", yaml_file("levels: 4"), "--sparsity", "0.6")[1]
    assert (args.levels, args.sparsity) == (None, 0.6)


@pytest.mark.parametrize(("text", "scope"), [("scope: 2:4", "2:4"), ("scope: '1:4'", "1:4"), ("scope: erk", "erk")])
def test_groups_are_no_numbers_of_base_60(yaml_file, text, scope):
    small, args = parse("--config", yaml_file(text + "\nneeded: 12\nsparsity: 5e-1"))
    assert (args.scope, small.needed, args.sparsity) == (scope, 12, 0.5)


@pytest.mark.parametrize("text", ["score: null", "seed: [1]"])
def test_values_of_another_type(capsys, yaml_file, text):
    assert "must have a value of its own type; received" in fails(capsys, "--config", yaml_file(text))


def test_a_file_that_is_no_text(capsys, tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "must be YAML" in fails(capsys, "--config", str(tmp_path / "bytes.yaml"))


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    logging.set_verbosity_warning()  # a quieter one, as other tests leave it, hides the bars too
    parser = RecipeParser([LotteryArguments])
    assert parser.parse(["--sparsity", "0.5"])[0].disable_tqdm is not terminal
    assert parser.parse(["--sparsity", "0.5", "--disable_tqdm", "false"])[0].disable_tqdm is False


@pytest.mark.parametrize(("given", "folder"), [([], "outputs/find"), (["--output_dir", "mine"], "mine")])
def test_where_a_command_writes(given, folder):
    (args,) = RecipeParser([LotteryArguments], "find").parse(["--sparsity", "0.5", *given])
    assert args.output_dir == folder
