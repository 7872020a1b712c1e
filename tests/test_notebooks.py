"""Every notebook runs from top to bottom, with smaller settings."""

import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

COLAB = pathlib.Path(__file__).resolve().parent.parent / "colab"
# What replaces each notebook's cell tagged "parameters".
SETTINGS = {
    "quickstart": "STEPS = 20\nBATCH = 64",
    "under_the_hood": "STEPS = 30\nPOINTS = 64\nFRAMES = 2",
}


@pytest.mark.parametrize("path", sorted(COLAB.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(COLAB.parent) + os.pathsep + os.getenv("PYTHONPATH", ""))
    monkeypatch.delenv("XLA_FLAGS")  # the four devices are the tests' own
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = SETTINGS[path.stem]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": COLAB}}).execute()
    assert path.stat().st_size < 200_000
