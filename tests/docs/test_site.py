"""The site: a page for every room, every public name on it, no warning; and a fault in a page is one."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "api"


def public_modules() -> set[str]:
    """The rooms and the folders of ``hf`` that list public names, and the modules among these names."""
    found = set()
    for path in (*(ROOT / "hf_lottery").glob("*/__init__.py"), *(ROOT / "hf_lottery").glob("hf/*/__init__.py")):
        module = import_module(".".join(path.parent.relative_to(ROOT).parts))
        if hasattr(module, "__all__"):
            values = {name: getattr(module, name) for name in module.__all__}
            found |= {module.__name__, *(value.__name__ for value in values.values() if type(value) is type(sys))}
    return found


def described(page: Path) -> list[str]:
    return re.findall(r"^\.\. automodule:: (\S+)$", page.read_text(), re.MULTILINE)


def build(source: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--conf-dir", str(ROOT / "docs")]
    return subprocess.run([*command, "--doctree-dir", f"{site}-doctrees", str(source), str(site)], capture_output=True,
                          text=True, cwd=ROOT)  # fmt: skip


def test_every_module_with_public_names_has_a_page():
    pages = {name: page.stem for page in API.glob("*.md") for name in described(page)}
    assert set(pages) == public_modules()
    assert all(f"{name}.".startswith(f"hf_lottery.{page}.") for name, page in pages.items())


@pytest.mark.slow
def test_the_site_has_every_page_and_every_public_name_and_no_warning(tmp_path):
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0 and not done.stderr, done.stderr
    for page in API.glob("*.md"):
        html = (tmp_path / "site" / "docs" / "api" / f"{page.stem}.html").read_text()
        for module in described(page):
            names = getattr(import_module(module), "__all__", [])
            values = {name: getattr(import_module(module), name) for name in names}
            missing = {name for name, value in values.items() if f'id="{anchor(module, name, value)}"' not in html}
            assert not missing, (module, missing)
    first_page = (tmp_path / "site" / "docs" / "api" / "hf_lottery.html").read_text()
    names = [name for name in import_module("hf_lottery").__all__ if not name.startswith("__")]
    assert not [name for name in names if f">{name}<" not in first_page]
    assert (tmp_path / "site" / "index.html").read_text() == (tmp_path / "site" / "README.html").read_text()
    pages = {
        page.relative_to(ROOT).with_suffix(".html") for page in (*ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.ipynb"))
    }
    assert all((tmp_path / "site" / page).is_file() for page in pages)


def anchor(module: str, name: str, value: object) -> str:
    return f"module-{value.__name__}" if type(value) is type(sys) else f"{module}.{name}"


FAULTS = {
    "[gone](docs/gone.md)": "gone.md",
    "[gone](docs/here.md#gone)": "gone",
    "![gone](gone.png)": "gone.png",
    "```{eval-rst}\n:func:`hf_lottery.gone`\n```": "hf_lottery.gone",
    "```{eval-rst}\n.. autofunction:: hf_lottery.masks.gone\n```": "'gone' from module",
}


@pytest.mark.slow
def test_a_fault_in_a_page_is_a_warning(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "here.md").write_text("# Here\n")
    (tmp_path / "docs" / "alone.md").write_text("# No page lists this one\n")
    (tmp_path / "README.md").write_text("# Home\n\n[here](docs/here.md)\n\n" + "\n\n".join(FAULTS))
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert not [fault for fault in [*FAULTS.values(), "alone.md"] if not any(fault in line for line in lines)], lines
