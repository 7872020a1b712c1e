"""A run starts from the checkpoint's parameters; what does not fit is an error."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import traverse_util

from align_jax.models import unstack_layers
from align_jax.pretrained import load
from tests.pretrained.checkpoints import VOCAB
from tests.train.tiny_glue import fake_glue, tiny_checkpoint, tiny_config
from train.devices import partition
from train.devices.mesh import MeshRunner
from train.experiment.experiment import build_experiment
from train.registry import ConfigError
from train.run.evaluation import collect_clouds
from train.step.step import train_step


@pytest.fixture(scope="module")
def first_params(checkpoint) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """The first state's parameters by method and seed."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        fake_glue(patch)
        for method, seed in (("none", 0), ("ct", 0), ("ct", 1)):
            config = tiny_config(checkpoint, method=method)
            config.seed = seed
            params = jax.device_get(build_experiment(config).initial_state().params)
            found[method, seed] = traverse_util.flatten_dict(params, sep="/")
    return found


def test_the_first_state_holds_the_checkpoint_and_only_the_rest_depends_on_the_seed(
    checkpoint, first_params
) -> None:
    one, two = first_params["ct", 0], first_params["ct", 1]
    saved = traverse_util.flatten_dict(load(checkpoint, head="encoder").params, sep="/")
    assert any(name.startswith("layer_0") for name in saved)
    for name, value in saved.items():
        np.testing.assert_array_equal(one[f"encoder/{name}"], value)
    differing = {name for name in one if (one[name] != two[name]).any()}
    assert "classifier/kernel" in differing
    assert all(name.startswith("classifier") or "/alignment/" in name for name in differing)


def test_plain_and_aligned_start_equal(first_params) -> None:
    plain, aligned = first_params["none", 0], first_params["ct", 0]
    assert set(plain) < set(aligned)
    for name, value in plain.items():
        np.testing.assert_array_equal(value, aligned[name])


@pytest.fixture(scope="module")
def scanned_and_looped(tmp_path_factory):
    """A batch, and a state each, of the same two layers with MMD in their attention."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("bert-2"), layers=2)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        fake_glue(patch)
        for scan_layers in (False, True):
            config = tiny_config(folder, method="mmd")
            config.model.update({"scan_layers": scan_layers, "classifier_dropout": 0.0})
            config.optimizer.epsilon = 1e-3  # gradients of zero but for rounding move nothing
            experiment = build_experiment(config)
            found.append(experiment.initial_state())
        batch = experiment.data.example_batch()
    return batch, *found


@pytest.mark.thorough
def test_scanned_layers_train_and_report_as_the_loop(scanned_and_looped, monkeypatch) -> None:
    """One step, on one device and on four with parameters cut."""
    monkeypatch.setattr(partition, "LEAST_SIZE", 16)
    batch, looped, scanned = scanned_and_looped
    steps = [jax.jit(train_step)(looped, batch), jax.jit(train_step)(scanned, batch)]
    if jax.local_device_count() >= 4:
        mesh = MeshRunner(jax.local_devices()[:4], model=2, fsdp=True)
        placed = mesh.place(jax.device_put(scanned, may_alias=False))  # which a step gives away
        steps.append(mesh.train_step(placed, mesh.shard(batch)))
    results = []
    for after, report in jax.device_get(steps):
        numbers = {n: x.compute() for n, x in report.items() if n != "divergence"}
        params = unstack_layers(after.params) if results else after.params
        results.append((numbers, params))
    for other in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), results[0], other
        )


@pytest.mark.thorough
def test_clouds_of_scanned_layers_are_those_of_the_loop(scanned_and_looped) -> None:
    batch, looped, scanned = scanned_and_looped
    expected, found = (collect_clouds(state, batch) for state in (looped, scanned))
    assert list(expected) == [f"encoder/layer_{n}/attention" for n in range(2)]
    assert list(found) == [f"encoder/layers/attention#{n}" for n in range(2)]
    for one, other in zip(expected.values(), found.values(), strict=True):
        for name in one._fields:
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


def test_another_tokenizer_than_the_models_is_refused(checkpoint, monkeypatch, tmp_path) -> None:
    fake_glue(monkeypatch)
    other = tiny_checkpoint(tmp_path / "other")
    (other / "vocab.txt").write_text("\n".join([*VOCAB[:-2], VOCAB[-1], VOCAB[-2]]) + "\n")
    config = tiny_config(checkpoint).unlock()
    config.data = config.data.copy_and_resolve_references()
    config.data.tokenizer = str(other)
    with pytest.raises(ConfigError, match="number the tokens differently"):
        build_experiment(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "max"}, "'max'"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"pretrained": "./nowhere"}, "no folder './nowhere'"),
    ],
)
def test_bad_settings_are_config_errors(checkpoint, monkeypatch, changes, message) -> None:
    fake_glue(monkeypatch)
    config = tiny_config(checkpoint)
    config.model.update(changes)
    with pytest.raises(ConfigError, match=message):
        build_experiment(config)
