"""Node classification: what the mask leaves out, and a run of the whole loop on a small graph."""

from __future__ import annotations

import collections
import functools
import json
import pickle
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.sparse
import scipy.special
from ml_collections import ConfigDict

from tests.train.commands import run_quietly
from train.configs import planetoid
from train.experiment.experiment import build_experiment
from train.registry import ConfigError
from train.report.gallery import write_pictures
from train.report.picture import run_points
from train.report.runs import read_run
from train.run import loop
from train.step.step import train_step
from train.tasks.metrics import compute
from train.tasks.node_classification import NodeClassification

LOGITS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
BATCH = {
    "label": np.array([0, 1, -1, 2, -1]),
    "mask": np.array([True, True, False, False, False]),
}


def test_an_unknown_label_outside_the_split_changes_nothing() -> None:
    task = NodeClassification()
    known = {**BATCH, "label": np.array([0, 1, 2, 2, 0])}
    for batch in (BATCH, known):
        losses = np.asarray(jax.jit(task.loss)(LOGITS, batch))
        assert np.isfinite(losses).all()
        expected = -scipy.special.log_softmax(LOGITS, axis=-1)[np.arange(2), [0, 1]]
        np.testing.assert_allclose(losses[:2], expected, rtol=1e-5)
        values = compute(jax.jit(task.metrics)(LOGITS, batch))
        assert values["accuracy"] == np.mean(LOGITS[:2].argmax(1) == [0, 1])


def test_the_graph_is_one_sample_to_the_alignment() -> None:
    assert NodeClassification().sample_mask(BATCH) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two communities of ten nodes, whose members share words, in Planetoid's format."""
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    community = np.arange(20) % 2
    words = (rng.random((20, 8)) < 0.3 + 0.5 * (np.arange(8) % 2 == community[:, None])) * 1.0
    words[:, 0] = 1  # so that no node is without words
    labels = np.eye(2, dtype=np.int32)[community]
    graph = collections.defaultdict(list)
    for node in range(18):
        graph[node].append(node + 2)
    order = [19, 14, 16, 15, 18, 17]
    parts = {
        "x": scipy.sparse.csr_matrix(words[:4], dtype=np.float32), "y": labels[:4],
        "allx": scipy.sparse.csr_matrix(words[:14], dtype=np.float32), "ally": labels[:14],
        "tx": scipy.sparse.csr_matrix(words[order], dtype=np.float32), "ty": labels[order],
        "graph": graph,
    }  # fmt: skip
    for part, value in parts.items():
        (folder / f"ind.toy.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / "ind.toy.test.index").write_text("\n".join(map(str, order)))
    return folder


def small(folder: Path) -> ConfigDict:
    """The paper's run on Cora, on that graph."""
    config = planetoid.get_config("cora")
    config.data.update({"dataset": "toy", "folder": str(folder), "num_validation": 6})
    config.optimizer.learning_rate = 0.02
    config.train.update({"steps": 60, "patience": 20, "log_every": 10})
    return config.lock()


@pytest.fixture
def config(folder: Path) -> ConfigDict:
    return small(folder)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory):
    """Makes a finished run, or gives it again: its config, folder and result."""

    @functools.cache
    def make(method: str, over: str = "nodes") -> tuple[ConfigDict, Path, dict[str, Any]]:
        config, workdir = small(folder), tmp_path_factory.mktemp("run") / "run"
        config.alignment.update({"method": method, "tokens": 0})
        config.eval.update({"every": 5, "at_start": False})
        if method != "energy":  # whose clouds are enough of them
            config.eval.mmd_examples = 0
        config.model.alignment_over = over
        return config, workdir, run_quietly(config, workdir)

    return make


def test_only_the_labels_of_the_split_train(config: ConfigDict) -> None:
    experiment = build_experiment(config)
    batch = experiment.data.example_batch()
    label = batch["label"].copy()
    label[4:] = 1 - label[4:]
    step, start = jax.jit(train_step), experiment.initial_state()
    (expected, report), (state, changed) = (step(start, batch | x) for x in ({}, {"label": label}))
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
    assert report["task_loss"].count == changed["task_loss"].count == 4


@pytest.mark.parametrize(
    ("method", "over"),
    [
        pytest.param("none", "nodes", marks=pytest.mark.thorough),
        ("energy", "nodes"),
        pytest.param("ct", "edges", marks=pytest.mark.thorough),
        pytest.param("gan", "nodes", marks=pytest.mark.thorough),
    ],
)
def test_the_common_loop_trains_a_graph(run, method: str, over: str) -> None:
    _, folder, result = run(method, over)
    assert result["metrics"]["test"]["accuracy"] >= 0.8
    assert (result["alignment"] is None) == (method == "none")
    written = json.loads((folder / "result.json").read_text())
    assert written["metrics"] == result["metrics"]


def test_the_picture_shows_nodes_by_class_and_clouds(run, tmp_path: Path) -> None:
    settings, folder, _ = run("energy")
    points = run_points(*loop.restore_run(folder, settings), "layer_0", 3)
    assert points.queries.shape == points.keys.shape == (20, 8)
    assert points.embeddings.shape == (20, 64)
    assert sorted(points.labels) == [0] * 10 + [1] * 10
    lines = write_pictures({"energy": read_run(folder)}, tmp_path)
    assert f"Picture: {tmp_path / 'picture.png'}" in lines
    assert plt.imread(tmp_path / "picture.png").std() > 0


def test_stops_when_the_patience_is_used_up(config: ConfigDict, tmp_path: Path) -> None:
    """Also on all devices, of which a graph takes one."""
    config.train.update({"steps": 2000, "patience": 3})
    config.optimizer.learning_rate = 1.0  # so high that little is gained
    config.eval.update({"final": (), "mmd_examples": 0})
    result = loop.run(config, tmp_path / "run")
    assert result["steps"] < 2000


@pytest.mark.parametrize("dataset", planetoid.DATASETS)
def test_config_of_every_data_set(dataset: str) -> None:
    config = planetoid.get_config(dataset)
    assert config.data.dataset == dataset
    pubmed = dataset == "pubmed"
    assert config.model.num_output_heads == (8 if pubmed else 1)
    assert config.optimizer.learning_rate == (0.01 if pubmed else 0.005)
    assert config.optimizer.weight_decay == (0.001 if pubmed else 0.0005)


def test_a_graph_is_not_taken_in_parts(config: ConfigDict, tmp_path) -> None:
    config.train.microbatch_size = 8
    with pytest.raises(ConfigError, match="microbatch_size is 8, but .* one whole graph"):
        loop.run(config, tmp_path / "run")


def test_an_unknown_data_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="known: cora, citeseer, pubmed"):
        planetoid.get_config("corra")


def test_edges_with_another_method_is_an_error_of_the_config(config: ConfigDict) -> None:
    config.alignment.method = "gan"
    config.model.alignment_over = "edges"
    config.alignment.tokens = 0
    with pytest.raises(ConfigError, match="works with method 'ct'"):
        build_experiment(config)
