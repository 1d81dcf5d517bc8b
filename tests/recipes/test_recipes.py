"""The files in recipes/: five thin entry points, a README that says which to run, and configurations that are read."""

import ast
import json
import re
import runpy
import shlex

import pytest
from recipe_runs import ROOT

from hf_lottery import LotteryArguments
from hf_lottery.hf.commands.find_ticket import FindArguments
from hf_lottery.hf.commands.parser import RecipeParser
from hf_lottery.hf.tasks.data import DataArguments
from hf_lottery.hf.tasks.models import AUTO_MODELS, ModelArguments

RECIPES = ROOT / "recipes"
ENTRY_POINTS = {
    "align_mask": "align", "connectivity": "connect", "find_ticket": "find", "train_ticket": "train",
    "transfer_ladder": "ladder",
}  # fmt: skip


def test_the_top_level_holds_the_entry_points_and_a_readme():
    files = {path.name for path in RECIPES.iterdir() if path.is_file()}
    assert files == {"README.md", *(f"{name}.py" for name in ENTRY_POINTS)}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_is_thin(name):
    docstring, _, imported, call = ast.parse((RECIPES / f"{name}.py").read_text()).body
    command = ENTRY_POINTS[name]
    assert f"accelerate launch recipes/{name}.py" in ast.literal_eval(docstring.value)
    assert f"``hf-lottery {command}`` is the same command" in " ".join(ast.literal_eval(docstring.value).split())
    assert ast.unparse(imported) == "from hf_lottery.hf.commands.main import main"
    assert ast.unparse(call) == f"if __name__ == '__main__':\n    sys.exit(main(['{command}', *sys.argv[1:]]))"


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_has_help(monkeypatch, capsys, name):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    assert stopped.value.code == 0
    assert "--dataset_train_split" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.py")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_scripts_change_no_import_path(path):
    assert "sys.path" not in path.read_text()


def command_lines(text):
    """The commands of a page or docstring, each in one line."""
    lines = re.sub(r"\\+\n\s*", " ", text).splitlines()
    return [line.split("#")[0].strip() for line in lines if re.match(r"\s*(accelerate launch|python) ", line)]


@pytest.mark.parametrize("name", ["README.md", *(f"{name}.py" for name in ENTRY_POINTS)])
def test_commands_name_files_and_options_that_exist(name, capsys):
    page = (RECIPES / name).read_text()
    commands = command_lines(ast.get_docstring(ast.parse(page)) if name.endswith(".py") else page)
    assert commands
    for command in commands:
        paths = [word for word in shlex.split(command) if word.startswith("recipes/")]
        assert all((ROOT / path).is_file() for path in paths), command
    if name == "README.md":
        scripts = [*ENTRY_POINTS, *(path.stem for path in (RECIPES / "benchmarks").glob("*.py"))]
        assert all(f"`{script}.py`" in page for script in scripts)
        assert all(f"`{path.name}/`" in page for path in RECIPES.iterdir() if path.is_dir() and path.name[0] != "_")


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RECIPES.glob("*/*.yaml")) if path.stem in ("imp", "aws")],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_the_configuration_of_a_search_is_read(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    parser = RecipeParser([FindArguments, ModelArguments, DataArguments, LotteryArguments])
    _, model_args, data_args, args = parser.parse(["--config", str(path), "--use_cpu", "true"])
    assert args.sparsity is not None or args.levels is not None
    assert (args.norm_interpolation is not None) == (path.stem == "aws")
    assert data_args.dataset_name.startswith(path.parent.name)
    assert AUTO_MODELS[model_args.task].from_config(model_args.load_config()).num_parameters() > 1000


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_configuration_of_a_network_is_read(path):
    config = ModelArguments(config_name=str(path)).load_config()
    assert config.model_type == json.loads(path.read_text())["model_type"]


def test_every_network_is_of_a_configuration():
    texts = [path.read_text() for path in RECIPES.rglob("*.yaml")]
    for path in RECIPES.glob("*/*.json"):
        assert any(str(path.relative_to(ROOT)) in text for text in texts), path
