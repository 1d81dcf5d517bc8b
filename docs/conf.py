"""The site: every page of the repository as it is, and the public names from their docstrings. ``make docs`` builds it.

The source folder is the repository itself, so a link leads to the same page here and where the Markdown is read.
"""

import pydoc
import re
import shutil
import sys
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import nbformat
from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

import hf_lottery

ROOT = Path(__file__).resolve().parent.parent
ROOMS = sorted(page.stem for page in (ROOT / "docs" / "api").glob("*.md") if page.stem != "hf_lottery")
NAVIGATION = {
    "Use it": ["docs/quickstart", "docs/notebook", "docs/concepts", "docs/fine-tuning", "recipes/README"],
    "Know more": [
        "docs/symmetry",
        "docs/structured",
        "docs/scaling",
        "docs/results",
        "docs/ladders",
        "docs/results-short",
        "docs/papers",
    ],
    "Look it up": ["docs/api/hf_lottery", *(f"docs/api/{room}" for room in ROOMS), "docs/mask-format"],
    "Work on it": ["docs/design", "CONTRIBUTIONS", "docs/compatibility", "docs/changelog"],
}

project = "hf_lottery"
version = release = hf_lottery.__version__
copyright = "the authors of hf_lottery, Apache-2.0"
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTIONS.md", "recipes/README.md", "docs/*.md", "docs/*.ipynb", "docs/api/*.md"]
exclude_patterns = [".*", "outputs", "build", "dist", "hf_lottery", "tests", "trainer_output"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = f"hf_lottery {version}"
html_show_sphinx = False
html_show_copyright = False
highlight_language = "text"
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_attr_annotations = False  # the signature has them
add_module_names = False

nitpicky = True  # every reference must lead somewhere; see resolve


def public(module: str) -> dict[str, object]:
    """The public names of a module, and what they are."""
    found = import_module(module)
    return {name: getattr(found, name) for name in found.__all__}


# The classes of other packages that ours extend: what a class takes from them is described by their packages.
FOREIGN = {
    base.__name__
    for room in ROOMS
    for value in public(f"hf_lottery.{room}").values()
    if isinstance(value, type)
    for base in value.__mro__
    if not base.__module__.startswith("hf_lottery")
}
autodoc_default_options = {
    "members": True,
    "imported-members": True,
    "inherited-members": ",".join(sorted(FOREIGN)),
}


def setup(app: Sphinx) -> None:
    app.add_directive("public-names", PublicNames)
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.connect("source-read", add_navigation)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-signature", shorten)
    app.connect("missing-reference", resolve)
    app.connect("build-finished", make_home_page)


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Give the home page the list of all pages, which the site needs and a reader of the repository does not."""
    if page == root_doc:
        for caption, pages in NAVIGATION.items():
            pages = [page for page in pages if page in app.env.found_docs]
            source[0] += "\n".join(["\n```{toctree}", f":caption: {caption}", ":hidden:", "", *pages, "```\n"])


def make_home_page(app: Sphinx, error: Exception | None) -> None:
    """A site begins at index.html."""
    if error is None:
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def skip_fields(app: Sphinx, what: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples: the text of their class describes them already."""
    return True if type(value).__name__ == "_tuplegetter" else None


def shorten(
    app: Sphinx, what: str, name: str, value: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write defaults that are made anew as dots, and leave out the many fields of another package's dataclass."""
    if isinstance(value, type) and any(is_dataclass(base) and base.__name__ in FOREIGN for base in value.__mro__):
        return "(**arguments)", returns
    return signature and re.sub("<[^<>]*>", "...", signature), returns


def resolve(app: Sphinx, env: BuildEnvironment, node: nodes.Element, text: nodes.Element) -> nodes.Element | None:
    """Find what a docstring refers to by another name than the one that a reader imports.

    Returns:
        A link to the public name; the text alone, if the name exists and is not public; else nothing: a warning.
    """
    if node.get("refdomain") != "py":
        return None
    value = meaning(node["reftarget"])
    for public_name, (page, anchor, *_) in env.domains["py"].data["objects"].items():
        if value is not None and meaning(public_name) is value:
            return make_refnode(app.builder, node["refdoc"], page, anchor, text, public_name)
    return text if value is not None else None


@cache
def meaning(name: str) -> object | None:
    """What a name stands for: by its full path, or as any of our modules sees it."""
    parts = name.split(".")
    full = [(".".join(parts[:n]), parts[n:]) for n in range(len(parts) - 1, 0, -1)]
    ours = [(module, parts) for module in sorted(sys.modules) if module.split(".")[0] == "hf_lottery"]
    for module, rest in [*full, *ours]:
        value = sys.modules.get(module)
        for part in rest:
            value = getattr(value, part, None)
        if value is not None:
            return value
    return None


class PublicNames(SphinxDirective):
    """A table of the names of a first page: the room that describes each, and its first line.

    What no room has is described below the table.
    """

    def run(self) -> list[nodes.Node]:
        places = {name: f"hf_lottery.{room}" for room in ROOMS for name in public(f"hf_lottery.{room}")}
        rows, rest = [], []
        for name, value in public("hf_lottery").items():
            if name.startswith("__"):
                continue
            place = places.get(name, "hf_lottery")
            if name not in places:
                rest.append(f".. auto{'class' if isinstance(value, type) else 'function'}:: hf_lottery.{name}")
            first_line = re.sub(r":\w+:`(?:~[\w.]*\.)?([^`]+)`", r"``\1``", pydoc.splitdoc(pydoc.getdoc(value))[0])
            rows.append(f"   * - :py:obj:`{name} <{place}.{name}>`\n     - {first_line}")
        table = [".. list-table::", "   :widths: 30 70", "", *rows, ""]
        return self.parse_text_to_nodes("\n".join([*table, *rest]))


class NotebookParser(MystParser):
    """A notebook as a page: its text and its code. The outputs are those of whoever runs it."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        cells = nbformat.reads(inputstring, as_version=4).cells
        code = {"code": "```python\n{}\n```", "markdown": "{}"}
        super().parse("\n\n".join(code[cell.cell_type].format(cell.source) for cell in cells), document)
