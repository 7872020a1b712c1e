"""A checkpoint and a config small enough that a run takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.train.tiny_glue import tiny_checkpoint
from train.configs import digits


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers for every test, whichever ran before."""
    return np.random.default_rng(0)


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What names no devices runs on one, whose programs are compiled sooner than those of four."""
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small BERT with its tokenizer, which no test may change."""
    return str(tiny_checkpoint(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ConfigDict]:
    """Makes a run on the digits, four tokens, one layer.

    Keyword arguments replace keys: `tiny_config(train__steps=4)`.
    """

    def make(method: str = "ct", **changes: Any) -> ConfigDict:
        config = digits.get_config()
        config.alignment.method = method
        config.model.update(
            {"patch_size": 4, "hidden_size": 16, "layers": 1, "heads": 2, "mlp_size": 16,
             "dropout": 0.0}
        )  # fmt: skip
        config.data.batch_size = 16
        config.optimizer.warmup_steps = 0
        config.train.update({"steps": 6, "log_every": 2, "checkpoint_every": 3})
        config.eval.update({"every": 3, "mmd_examples": 8})
        for key, value in changes.items():
            section, name = key.split("__")
            config[section][name] = value
        return config.lock()

    return make
