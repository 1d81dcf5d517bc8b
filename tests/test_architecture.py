"""The rules of docs/design.md: which room may import which, and that nothing imports in a circle."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_lottery"
# The reading order: a room imports only itself and rooms above it.
ROOMS = [
    "networks", "storage", "masks", "pruning", "training", "symmetry", "alignment", "signs", "connectivity",
    "structured", "report", "hf",
]  # fmt: skip
BESIDE_ROOMS = {"__init__.py", "__main__.py", "lazy.py", "version.py", "py.typed"}
HUGGING_FACE = {"transformers", "datasets", "accelerate", "huggingface_hub", "evaluate"}
# A mask that is pushed or pulled reaches the Hub: the only import upwards.
UPWARD = ("storage.hub_mixin", "hf.hub")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE}


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Names of everything that a module imports, also inside functions and for type checking alone.

    The package's own names start with a dot. A name that is imported from a package and is a module itself counts as
    that module.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                base = "." + ".".join([*parts[: len(parts) - node.level + is_package], *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}" if base != "." else f".{alias.name}"
                found.add(inner if inner[1:] in MODULES else base)
    return {f".{name.removeprefix('hf_lottery.')}" if name.startswith("hf_lottery.") else name for name in found}


def own(names: set[str]) -> set[str]:
    """The package's own modules among imported names, without the dot."""
    return {name[1:] for name in names if name.startswith(".")}


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    room = module.split(".")[0]
    bad = []
    for name in imports(source, module, is_package):
        if not name.startswith("."):
            if room != "hf" and name.split(".")[0] in HUGGING_FACE:
                bad.append(name)
        elif f"{name[1:]}.py" not in BESIDE_ROOMS and (module, name[1:]) != UPWARD:
            other = name[1:].split(".")[0]
            if other not in ROOMS or ROOMS.index(other) > ROOMS.index(room):
                bad.append(name)
    return bad


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if there is none."""
    left = {module: targets & arrows.keys() - {module} for module, targets in arrows.items()}
    while free := {module for module, targets in left.items() if not targets}:
        left = {module: targets - free for module, targets in left.items() if module not in free}
    return sorted(left)


def test_the_top_level_holds_rooms_alone():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(ROOMS)
    assert len(ROOMS) <= 12
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == BESIDE_ROOMS


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_rooms_above_it(module):
    path = MODULES[module]
    assert not violations(path.read_text(), module, path.name == "__init__.py")


def test_nothing_imports_in_a_circle():
    arrows = {
        module: own(imports(path.read_text(), module, path.name == "__init__.py")) for module, path in MODULES.items()
    }
    arrows[UPWARD[0]].discard(UPWARD[1])
    assert not circle(arrows)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from ..training.sparsity import keep_sparse", "masks.mask"),
        ("def f():\n    from ..hf.hub.ticket import Ticket", "masks.mask"),
        ("def f():\n    from ..hf import hub", "masks.mask"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..symmetry.spec import Block", "masks.mask"),
        ("from ..hf import hub, plan", "storage.hub_mixin"),
        ("from hf_lottery.report import page", "signs.norms"),
        ("import transformers", "masks.mask"),
        ("def f():\n    from huggingface_hub import HfApi", "pruning.scopes"),
        ("from .. import Mask", "report.page"),
    ],
)
def test_the_rule_of_rooms_can_fail(source, module):
    assert violations(source, module)


@pytest.mark.parametrize("hidden", ["if TYPE_CHECKING:\n    ", "def f():\n    ", ""])
def test_the_rule_of_circles_can_fail(hidden):
    arrows = {
        "masks.mask": own(imports(f"{hidden}from .file import read_mask", "masks.mask")),
        "masks.file": own(imports(f"{hidden}from .mask import Mask", "masks.file")),
        "masks.config": set(),
    }
    assert circle(arrows) == ["masks.file", "masks.mask"]


HEAVY = ["accelerate", "datasets", "evaluate", "matplotlib", "peft", "scipy", "transformers"]


def loaded(code: str, names: list[str]) -> list[str]:
    """The modules among names that a fresh process has imported after it ran code."""
    code = f"import sys\n{code}\nprint([name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ast.literal_eval(result.stdout.strip())


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import hf_lottery", [*HEAVY, "torch", "numpy"]),
        ("import hf_lottery.hf", [*HEAVY, "torch", "numpy"]),
        ("from hf_lottery import Mask, find_ticket, keep_sparse, prune, discover, SignedMask", HEAVY),
        ("from hf_lottery.report import level_table, markdown_table, write_report", HEAVY),
        ("import hf_lottery; hf_lottery.prunable; hf_lottery.LotteryTrainer", ["datasets", "evaluate", "matplotlib"]),
    ],
)
def test_import_is_light(code, names):
    if "LotteryTrainer" in code:  # the Trainer imports what is installed: as if it were not
        code = "\n".join(f"sys.modules[{name!r}] = None" for name in names) + f"\n{code}"
        assert loaded(code, names) == names
    else:
        assert loaded(code, names) == []


def test_the_light_import_test_can_fail():
    assert loaded("import hf_lottery; hf_lottery.prunable", HEAVY)


LAZY = ["hf_lottery", "hf_lottery.hf", "hf_lottery.hf.hub", "hf_lottery.report"]


@pytest.mark.parametrize("package", LAZY)
def test_what_type_checkers_read_is_what_a_package_has(package):
    found = importlib.import_module(package)
    branch = next(node for node in ast.parse(Path(found.__file__).read_text()).body if isinstance(node, ast.If))
    for node in branch.body:
        module = importlib.import_module("." * node.level + (node.module or ""), package)
        for alias in node.names:
            there = getattr(module, alias.name, None)
            assert getattr(found, alias.name) is (there or importlib.import_module(f".{alias.name}", package))
    read = {alias.name for node in branch.body for alias in node.names}
    assert read | {"__version__"} >= set(found.__all__) and read == set(dir(found)) - {"__version__"}


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hf_lottery' has no attribute 'Maks'"):
        _ = importlib.import_module("hf_lottery").Maks
