"""A run as an attack sees it: the right probabilities, in few different shapes."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.train.tiny_glue import fake_glue, tiny_run
from train.attack import victim as victim_module
from train.attack.victim import Victim, restore_victim
from train.data.glue import Glue
from train.predict import predict
from train.registry import ConfigError


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    return tiny_run(checkpoint, tmp_path_factory.mktemp("run"))


@pytest.mark.thorough
def test_probabilities_are_those_that_the_run_predicts_whatever_the_batches(run) -> None:
    victim = restore_victim(run, batch_size=4)
    texts = [("cat " * number, "two dogs") for number in range(1, 8)]
    found = victim(texts)
    expected = [
        list(x["probabilities"].values()) for x in predict(victim.data, victim.state, texts)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    assert victim([]).shape == (0, 2)


def test_batches_are_filled_up_to_powers_of_two(run, monkeypatch) -> None:
    seen = []
    whole = victim_module.batch_outputs

    def watched(data, state, texts, rows):
        seen.append((len(texts), rows))
        return whole(data, state, texts, rows)

    monkeypatch.setattr(victim_module, "batch_outputs", watched)
    victim = restore_victim(run, batch_size=6)
    for count in (1, 3, 5, 13):
        assert victim([("cat", "")] * count).shape == (count, 2)
    assert seen == [(1, 1), (3, 4), (5, 6), (6, 6), (6, 6), (1, 1)]


@pytest.mark.parametrize(("backend", "size"), [("cpu", 8), ("gpu", 32)])
def test_a_cpu_takes_fewer_texts_at_once(monkeypatch, backend: str, size: int) -> None:
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    assert Victim(None, None).batch_size == size  # type: ignore[arg-type]


def on_another_task(run: pathlib.Path, folder: pathlib.Path, dataset: str) -> pathlib.Path:
    """A copy of the run as one on another of GLUE's tasks would have left it: same model."""
    shutil.copytree(run, folder)
    config = json.loads((run / "config.json").read_text())
    config["data"]["dataset"] = dataset
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_single_text_may_come_without_a_tuple(run, tmp_path) -> None:
    victim = restore_victim(on_another_task(run, tmp_path / "sst2", "sst2"))
    np.testing.assert_array_equal(victim(["cat", "dogs"]), victim([("cat",), ("dogs",)]))


def test_a_regression_is_refused(checkpoint, run, monkeypatch) -> None:
    fake_glue(monkeypatch, "stsb")
    data = Glue(dataset="stsb", tokenizer=checkpoint, batch_size=8, max_length=32)
    monkeypatch.setattr(victim_module, "restore_predictor", lambda _: (data, None))
    with pytest.raises(ConfigError, match="no classification of texts"):
        restore_victim(run)
