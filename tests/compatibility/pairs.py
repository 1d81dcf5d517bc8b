"""Run smoke.py in fresh environments: each Python with the oldest and the newest torch and transformers.

``python tests/compatibility/pairs.py FOLDER PYTHON...`` installs the wheel of this repository and prints the table of
docs/compatibility.md. The first row has the oldest release of everything; over all rows, each two of Python, torch and
transformers meet. It needs uv, which unpacks a package once for all environments: with four Pythons, the folder grows
by about 25 GB, the size of torch's builds for CUDA.
"""

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEADER = ("Python", "torch", "transformers", "the others", "smoke test")
ERROR = re.compile(r"^(ERROR:|[\w.]+(Error|Exit|Interrupt)\b).*", re.MULTILINE)


def floors() -> dict[str, str]:
    """The oldest release of each package that pyproject.toml admits."""
    text = (ROOT / "pyproject.toml").read_text()
    required = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert required is not None
    return dict(re.findall(r'^  "([\w-]+)>=([\d.]+)",', required[1], re.MULTILINE))


def rows(pythons: Sequence[str], packages: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Each Python, and the packages of which it takes the oldest release; of all others it takes the newest."""
    for place, python in enumerate(pythons):
        if place == 0:
            yield python, packages
            yield python, ()
        elif place % 2:
            yield python, ("torch",)
            yield python, ("transformers",)
        else:
            yield python, ("torch", "transformers")
            yield python, ()


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in a folder, where no package of this repository is in the way."""
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "UV_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=os.environ | own, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip()


def build_wheel(python: str, folder: Path) -> Path:
    """Build from a copy, as a build leaves files where it runs."""
    source = folder / "source"
    shutil.copytree(ROOT / "hf_lottery", source / "hf_lottery", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run("uv", "build", "--wheel", "--python", python, "--out-dir", folder, source, folder=folder)
    return next(folder.glob("*.whl"))


def try_row(python: str, pins: Mapping[str, str], wheel: Path, folder: Path) -> tuple[str, ...]:
    """Install and run in a fresh environment.

    Returns:
        The row of the table: the versions that were installed, and the first line of the error, if there is one.
    """
    environment = folder / "environment"
    inside = environment / "bin" / "python"
    others = "oldest" if len(pins) > 2 else "newest"
    try:
        run("uv", "venv", "--python", python, environment, folder=folder)
        chosen = [f"{name}=={version}" for name, version in pins.items()]
        run("uv", "pip", "install", "--python", inside, wheel, *chosen, folder=folder)
        result = "passes"
        try:
            run(inside, ROOT / "tests" / "compatibility" / "smoke.py", folder / "smoke", folder=folder)
        except RuntimeError as error:
            result = first_line(str(error))
        show = "import platform; from importlib.metadata import version as v"
        show += "; print(platform.python_version(), v('torch'), v('transformers'))"
        return *run(inside, "-c", show, folder=folder).split(), others, result
    except RuntimeError as error:
        asked = (pins.get(name, "newest") for name in ("torch", "transformers"))
        return Path(python).resolve().name, *asked, others, f"not installed: {first_line(str(error))}"
    finally:
        shutil.rmtree(environment, ignore_errors=True)
        shutil.rmtree(folder / "smoke", ignore_errors=True)


def first_line(error: str) -> str:
    """The first line of the error that ended a command, as a cell of a table."""
    found = list(ERROR.finditer(error))
    return (found[-1][0] if found else error.strip().splitlines()[-1]).replace("|", r"\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="An empty or new folder outside the repository, such as ../pairs.")
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="Interpreters, the oldest first.")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(options.pythons[0], folder)
    oldest = floors()
    for line in (HEADER, ["---"] * len(HEADER)):
        print("|", " | ".join(line), "|", flush=True)
    for python, packages in rows(options.pythons, list(oldest)):
        row = try_row(python, {name: oldest[name] for name in packages}, wheel, folder)
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
