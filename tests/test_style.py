"""The rules of CONTRIBUTIONS.md that a machine can check: sizes, private names, options, public names."""

import ast
import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("hf_lottery", "recipes", "tests") for path in (ROOT / folder).rglob("*.py"))
ROOMS = sorted(path.parent.name for path in (ROOT / "hf_lottery").glob("*/__init__.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def body_lines(function: Function) -> int:
    """Lines of a function's body without its docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def own_privates(kind: ast.ClassDef) -> set[str]:
    """The private names that a class defines: methods, class attributes, and what its methods assign to ``self``."""
    names = {node.name for node in kind.body if isinstance(node, Function)}
    for node in ast.walk(kind):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign) and node in kind.body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    # Names such as _repr_html_ are a protocol, and no class's own.
    return {name for name in names if name.startswith("_") and not name.endswith("_")}


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def classes(tree: ast.AST) -> list[ast.ClassDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def foreign_reads(tree: ast.AST, private: set[str], inside: frozenset[str] = frozenset()) -> Iterator[str]:
    """Reads of private names outside the class that defines them."""
    for node in ast.iter_child_nodes(tree):
        within = inside | own_privates(node) if isinstance(node, ast.ClassDef) else inside
        if isinstance(node, ast.Attribute) and node.attr in private - within and not is_self(node.value):
            owner = node.value
            if not (isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super"):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        yield from foreign_reads(node, private, frozenset(within))


PRIVATE = {
    name
    for path in FILES
    if path.is_relative_to(ROOT / "hf_lottery")
    for kind in classes(ast.parse(path.read_text()))
    for name in own_privates(kind)
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, Function)]
    assert not {function.name: body_lines(function) for function in functions if body_lines(function) > 40}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_are_read_by_their_own_class_alone(path):
    assert not list(foreign_reads(ast.parse(path.read_text()), PRIVATE))


def test_the_rules_can_fail():
    source = "def f():\n    '''Doc.'''\n" + "    x = 1\n" * 41
    assert body_lines(ast.parse(source).body[0]) == 41
    tree = ast.parse(
        "class A:\n    def __init__(self):\n        self._x = 1\n    def same(self, a):\n        return a._x\n"
    )
    assert own_privates(classes(tree)[0]) == {"_x"}
    assert not list(foreign_reads(tree, {"_x"}))
    assert list(foreign_reads(ast.parse("def f(a):\n    return a._x"), {"_x"})) == ["line 2: a._x"]


def public(module_name: str) -> dict[str, object]:
    module = import_module(module_name)
    return {name: getattr(module, name) for name in module.__all__}


def test_the_top_holds_some_fifty_names_and_none_of_the_standard_library():
    names = public("hf_lottery")
    assert len(names) <= 53
    assert not names.keys() & (sys.stdlib_module_names | set(dir(__builtins__)))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = import_module("hf_lottery").nonsense


@pytest.mark.parametrize("room", ["hf_lottery", *(f"hf_lottery.{room}" for room in ROOMS)])
def test_no_public_name_is_the_name_of_a_module_beside_it(room):
    folder = ROOT / room.replace(".", "/")
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    shared = {name for name, value in public(room).items() if name in modules and not inspect.ismodule(value)}
    assert not shared, "importing the module would replace the function"


# Arguments that may be left out and are no options, but the second subject of a call.
POSITIONAL = {
    "keep_sparse": {"optimizer"},
    "score_weights": {"score"},
    "magnitude": {"evidence"},  # every score is called as score(weight, evidence)
    "random_score": {"evidence"},
    "RecipeParser.parse": {"arguments"},
}


def ours(kind: type) -> bool:
    return kind.__module__.startswith("hf_lottery")


def signatures() -> Iterator[tuple[str, inspect.Signature]]:
    """The public functions of all rooms, and the public methods of our classes.

    A method that overrides one of another library keeps the signature of that library.
    """
    for room in ROOMS:
        for name, value in public(f"hf_lottery.{room}").items():
            if inspect.isfunction(value):
                yield name, inspect.signature(value)
            elif inspect.isclass(value) and not issubclass(value, tuple):
                for method, function in vars(value).items():
                    function = getattr(function, "__func__", function)
                    theirs = any(method in vars(base) for base in value.__mro__[1:] if not ours(base))
                    if inspect.isfunction(function) and not method.startswith("_") and not theirs:
                        yield f"{name}.{method}", inspect.signature(function)


def test_options_are_keyword_only():
    loose = {
        name: options
        for name, signature in signatures()
        if (
            options := {
                parameter.name
                for parameter in signature.parameters.values()
                if parameter.default is not parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            }
            - POSITIONAL.get(name, set())
        )
    }
    assert not loose


def test_in_place_functions_and_nothing_else_end_in_an_underscore():
    ends = {name for name, _ in signatures() if name.endswith("_")}
    in_place = {name for name, signature in signatures() if "in place" in (docstring_of(name) or "").split("\n\n")[0]}
    assert ends == in_place


def docstring_of(name: str) -> str | None:
    owner, _, method = name.partition(".")
    for room in ROOMS:
        if owner in (names := public(f"hf_lottery.{room}")):
            return inspect.getdoc(getattr(names[owner], method) if method else names[owner])
    return None
