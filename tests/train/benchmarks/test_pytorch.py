"""The comparison with PyTorch, on the tiny checkpoint."""

from __future__ import annotations

import importlib.util
from concurrent import futures

import pytest

from tests.train.tiny_glue import fake_glue, tiny_config
from train.benchmarks import pytorch
from train.data.glue import Glue
from train.registry import ConfigError


@pytest.fixture
def config(checkpoint):
    return tiny_config(checkpoint)


@pytest.fixture
def contestants(monkeypatch) -> dict:
    found = dict(pytorch.CONTESTANTS)
    monkeypatch.setattr(pytorch, "CONTESTANTS", found)
    return found


@pytest.mark.slow
def test_all_take_their_turns(config, monkeypatch, contestants) -> None:
    """One of PyTorch's two is enough: they differ in the huge pages alone."""
    for package in ("torch", "transformers"):  # a child imports them, this process need not
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}")
    both = contestants["transformers"], contestants.pop("transformers, huge pages")
    assert both[0][0] == both[1][0]
    fake_glue(monkeypatch)
    settings = {"tokenizer": config.data.tokenizer, "batch_size": 8, "max_length": 32}
    batch = next(Glue(**settings).train_batches())
    first, seconds = pytorch.measure(config, batch, rounds=2, steps=2)
    assert set(first) == set(seconds) == {"align_jax", "transformers"}
    assert min(first.values()) > 0
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())


def test_a_contestant_that_fails_is_named(config, monkeypatch, contestants) -> None:
    def fails(config, batch):
        raise KeyError("input_ids")

    def thread(*_):
        return futures.ThreadPoolExecutor(1)  # does what a process does, without its imports

    monkeypatch.setattr(pytorch.futures, "ProcessPoolExecutor", thread)
    monkeypatch.setattr(pytorch.cli, "use_compilation_cache", lambda: None)
    contestants.clear()
    contestants["align_jax"] = (fails, {})
    with pytest.raises(ConfigError, match=r"align_jax failed: KeyError: 'input_ids'"):
        pytorch.measure(config, {}, rounds=1, steps=1)
