"""The comparison with PyTorch, on the tiny checkpoint."""

from __future__ import annotations

import multiprocessing
import os
import threading
import types
from multiprocessing.connection import Connection

import pytest

from tests.train.tiny_glue import fake_glue, tiny_config
from train.benchmarks import text_step
from train.data.glue import Glue
from train.registry import ConfigError


@pytest.fixture
def config(checkpoint):
    return tiny_config(checkpoint)


@pytest.mark.slow
def test_all_take_their_turns(config, monkeypatch) -> None:
    """One of PyTorch's two is enough: they differ in the huge pages alone."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    contestants = dict(text_step.CONTESTANTS)
    both = contestants["transformers"], contestants.pop("transformers, huge pages")
    assert both[0].stepper == both[1].stepper
    monkeypatch.setattr(text_step, "CONTESTANTS", contestants)
    fake_glue(monkeypatch)
    settings = {"tokenizer": config.data.tokenizer, "batch_size": 8, "max_length": 32}
    batch = next(Glue(**settings).train_batches())
    times = text_step.measure(config, batch, rounds=2, steps=2)
    assert set(times) == {"align_jax", "transformers"}
    assert all(len(values) == 3 and min(values) > 0 for values in times.values())


def test_ratios_leave_the_first_step_out() -> None:
    times = {"align_jax": [9.0, 1.0, 2.0], "transformers": [1.0, 3.0, 4.0]}
    found = text_step.ratios(times, "align_jax")
    assert found == {"align_jax": [1.0, 1.0], "transformers": [3.0, 2.0]}


class Thread(threading.Thread):
    """Does what a process does, without its imports: it has a pipe's end of its own."""

    def __init__(self, target, args) -> None:
        name, pipe, *others = args
        own = Connection(os.dup(pipe.fileno()))
        super().__init__(target=target, args=(name, own, *others))

    def kill(self) -> None:
        assert not self.is_alive()


def test_a_contestant_that_fails_is_named(config, monkeypatch) -> None:
    def fails(config, batch):
        raise KeyError("input_ids")

    threads = types.SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Thread)
    monkeypatch.setattr(text_step.multiprocessing, "get_context", lambda _: threads)
    monkeypatch.setattr(text_step.cli, "use_compilation_cache", lambda: None)
    contestant = text_step.Contestant(fails)
    monkeypatch.setattr(text_step, "CONTESTANTS", {"align_jax": contestant})
    with pytest.raises(ConfigError, match=r"align_jax failed: KeyError: 'input_ids'"):
        text_step.measure(config, {}, rounds=1, steps=1)
