"""The comparison with PyTorch, on the tiny checkpoint."""

from __future__ import annotations

import pytest

from tests.train.tiny_glue import fake_glue, tiny_checkpoint, tiny_config
from train.benchmarks import text_step
from train.data.glue import Glue
from train.registry import ConfigError


@pytest.fixture
def config(tmp_path):
    return tiny_config(tiny_checkpoint(tmp_path))


def test_all_take_their_turns(config, monkeypatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    fake_glue(monkeypatch)
    settings = {"tokenizer": config.data.tokenizer, "batch_size": 8, "max_length": 32}
    batch = next(Glue(**settings).train_batches())
    times = text_step.measure(config, batch, rounds=2, steps=2)
    assert set(times) == {"align_jax", "transformers", "transformers, huge pages"}
    assert all(len(values) == 3 and min(values) > 0 for values in times.values())


def test_ratios_leave_the_first_step_out() -> None:
    times = {"align_jax": [9.0, 1.0, 2.0], "transformers": [1.0, 3.0, 4.0]}
    found = text_step.ratios(times, "align_jax")
    assert found == {"align_jax": [1.0, 1.0], "transformers": [3.0, 2.0]}


def test_a_contestant_that_fails_is_named(config) -> None:
    with pytest.raises(ConfigError, match=r"align_jax failed: .*"):
        text_step.measure(config, {}, rounds=1, steps=1)
