"""The notebook: committed without outputs, and it runs on one core in under three minutes of CPU time."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATHS = sorted((Path(__file__).parents[2] / "docs").glob("*.ipynb"))


def test_there_is_a_notebook():
    assert PATHS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not [cell.id for cell in code if cell.outputs or cell.execution_count is not None or cell.metadata]
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client, about its event loop
def test_a_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    # Of the progress bars that other packages import, where a notebook has no widgets.
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in errors if "TqdmWarning" not in text]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    seconds, words = outputs[-1].text.split(" ", 1)
    assert words == "seconds of CPU\n" and int(seconds) < 180
