"""The rules of docs/design.md: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hf_lottery"
# The reading order: a module imports only modules above it.
ORDER = [
    "version", "staging", "encoding", "mask_config", "mask_file", "sign_file", "stored", "shards", "mask", "series",
    "scores", "stream", "sharded_select", "select", "scope", "prune", "schedule", "rewind", "sparse", "imp", "norms",
    "signs", "report.tables", "report.style", "report.dead", "report.curves", "report.bars", "report.maps",
    "report.page", "report",
    "permutation_file", "permutation", "symmetry.blocks", "symmetry.layout", "symmetry.trace",
    "symmetry.rules.base", "symmetry.rules.elementwise", "symmetry.rules.views", "symmetry.rules.rearrangements",
    "symmetry.rules.contractions", "symmetry.rules.reductions", "symmetry.rules.indexing", "symmetry.rules",
    "symmetry.outputs", "symmetry.verify", "symmetry.spec", "symmetry.solve", "symmetry.discover", "assignment", "ties",
    "processes", "correlation", "descent", "matching", "repair", "fold", "overlap", "interpolation", "connectivity",
    "plane", "diversity", "hessian", "hf.prunable", "hf.adapter", "hf.callback", "hf.arguments", "hf.parser",
    "hf.metrics", "hf.metrics.accuracy", "hf.metrics.error_barrier", "hf.metrics.mask_overlap",
    "hf.metrics.sign_agreement", "hf.card", "hf.hub", "hf.checkpoint", "hf.door", "hf.reference", "hf.run_folder",
    "hf.run_settings", "hf.ticket", "hf.sparse_trainer", "hf.lottery_trainer", "hf.winning_sign_trainer",
    "hf.plan.files", "hf.plan.levels", "hf.plan.optimizer", "hf.plan.sizes", "hf.plan.disk", "hf.plan.memory",
    "hf.plan.matching",
    "hf.plan.search", "hf.plan", "hf.cli",
]  # fmt: skip
HUGGING_FACE = {"transformers", "datasets", "accelerate", "huggingface_hub", "evaluate"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """Absolute names of everything a module imports, inside functions too; the package's own start with a dot."""
    found = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []  # names for annotations are no imports
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if module else []
            base = parts[: len(parts) - node.level + is_package]
            found |= {"." + ".".join([*base, *filter(None, [node.module])])}
    return found


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    above = ORDER[: ORDER.index(module)]
    bad = []
    for name in imports(source, module, is_package):
        if name.startswith("."):
            if name[1:] not in above and not (is_package and name[1:].startswith(module)):
                bad.append(name)
        elif not module.startswith("hf.") and name.split(".")[0] in HUGGING_FACE:
            bad.append(name)
    return bad


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if module_name(path) not in ("__init__", "hf", "symmetry")]


def test_the_order_names_every_module():
    assert sorted(ORDER) == sorted(module_name(path) for path in modules())


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_a_module_imports_only_modules_above_it(path):
    assert not violations(path.read_text(), module_name(path), path.name == "__init__.py")


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from .sparse import keep_sparse", "mask"),
        ("def f():\n    from .hf.ticket import Ticket", "mask"),
        ("import transformers", "mask"),
        ("def f():\n    from huggingface_hub import HfApi", "prune"),
        ("from .sparse_trainer import SparseTrainer", "hf.card"),
    ],
)
def test_the_rule_can_fail(source, module):
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [("hf_lottery", sorted(HUGGING_FACE)), ("hf_lottery.hf", ["datasets", "evaluate", "matplotlib"])],
)
def test_import_is_light(module, forbidden):
    code = f"import sys, {module}; print([name for name in {forbidden} if name in sys.modules])"
    if module == "hf_lottery.hf":  # as if they were not installed
        code = f"import sys\nfor n in {forbidden}: sys.modules[n] = None\nimport {module}; print([])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_light_import_test_can_fail():
    code = "import sys, hf_lottery; hf_lottery.prunable; print('transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


def test_every_public_name_is_there():
    import hf_lottery

    for name in hf_lottery.__all__:
        assert getattr(hf_lottery, name) is not None
    assert set(hf_lottery._LAZY) <= set(hf_lottery.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = hf_lottery.nonsense
