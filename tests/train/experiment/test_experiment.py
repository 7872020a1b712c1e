"""The parts of an experiment are made as its config says."""

from __future__ import annotations

import sys

import pytest

from tests.train import tiny_glue
from train.experiment.experiment import build_experiment
from train.registry import ConfigError


def test_the_datas_order_is_that_of_the_runs_seed(tiny_config) -> None:
    config = tiny_config()
    config.seed = 3
    assert build_experiment(config).data.seed == 3


def test_a_missing_package_is_a_config_error(checkpoint, monkeypatch) -> None:
    tiny_glue.fake_glue(monkeypatch)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ConfigError, match=r"config.model: .*'safetensors': .*\.\[pretrained\]"):
        build_experiment(tiny_glue.tiny_config(checkpoint))


@pytest.mark.parametrize(("key", "value"), [
    ("train.steps", -1), ("train.log_every", -5), ("train.checkpoint_every", -2),
    ("train.keep_checkpoints", -1), ("train.patience", -1), ("eval.every", -2),
    ("eval.mmd_examples", -1), ("eval.mmd_every", -1), ("train.mesh_model", 0),
])  # fmt: skip
def test_a_number_that_says_nothing_is_refused(tiny_config, key: str, value: int) -> None:
    config = tiny_config(**{key.replace(".", "__"): value})
    with pytest.raises(ConfigError, match=f"{key} is {value}; expected a whole number of at least"):
        build_experiment(config)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bandwidth_that_measures_nothing_is_refused(tiny_config, bandwidth: float) -> None:
    with pytest.raises(ConfigError, match="eval.mmd_bandwidth is .*; expected a number above 0"):
        build_experiment(tiny_config(eval__mmd_bandwidth=bandwidth))
