"""Curves go to Weights & Biases, or to a class of the user's, beside the run's folder."""

from __future__ import annotations

import io
import pathlib
import sys
import types

import pytest
import rich.console
from ml_collections import ConfigDict

from train.registry import ConfigError
from train.run.log import RunLog
from train.run.sinks import opened

CONFIG = ConfigDict({"seed": 3})


class Recorded:
    """A user's sink."""

    def __init__(self, *made_of) -> None:
        self.calls = [made_of]

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


class Service:
    """Stands in for the package wandb: what its run was told."""

    def __init__(self) -> None:
        self.runs = []

    def init(self, **options):
        calls = [options]
        self.runs.append(calls)

        def keep(name):
            return lambda *arguments, **options: calls.append((name, arguments, options))

        return types.SimpleNamespace(**{n: keep(n) for n in ("log", "alert", "finish")})


def write(workdir: pathlib.Path, sinks) -> None:
    console = rich.console.Console(file=io.StringIO())
    with RunLog(workdir, 10, 0, console, "title", sinks) as log:
        log.write(5, "train", {"loss": 0.5, "steps_per_second": 2.0})
        log.write(5, "test", {"accuracy": 0.75, "reliability": [1]})
        log.notice(5, "Look: here")


def test_a_class_of_the_users_gets_what_tensorboard_gets(tmp_path) -> None:
    with opened(f"{__name__}:Recorded", tmp_path, "title", CONFIG) as sinks:
        write(tmp_path, sinks)
    assert sinks[0].calls == [
        (tmp_path, "title", CONFIG),
        ("scalar", "train/loss", 0.5, 5),
        ("scalar", "train/steps_per_second", 2.0, 5),
        ("flush",),
        ("scalar", "test/accuracy", 0.75, 5),
        ("flush",),
        ("text", "notice", "Look: here", 5),
        ("close",),
    ]


def test_weights_and_biases_gets_one_call_for_each_record(tmp_path, monkeypatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    for _ in range(2):
        with opened("wandb", tmp_path, "title", CONFIG) as sinks:
            write(tmp_path, sinks)
    first, again = service.runs
    assert first[0] | {"id": ""} == {
        "project": "align_jax", "id": "", "name": "title", "config": {"seed": 3}, "resume": "allow",
    }  # fmt: skip
    assert again[0]["id"] == first[0]["id"] != ""  # the same run goes on
    assert first[1:] == [
        ("log", ({"train/loss": 0.5, "train/steps_per_second": 2.0},), {"step": 5}),
        ("log", ({"test/accuracy": 0.75},), {"step": 5}),
        ("alert", (), {"title": "notice, step 5", "text": "Look: here"}),
        ("finish", (), {}),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "wandb", "no_such_module:Sink", "train.run.sinks:Nothing", "x", "os:path",
        "train.run.sinks:Sink",
    ],
)  # fmt: skip
def test_a_sink_that_cannot_be_used_is_named(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    with (
        pytest.raises(ConfigError, match=rf"log_to is '{name}'.*Expected one of wandb"),
        opened(name, tmp_path, "title", CONFIG),
    ):
        pass


def test_without_a_name_there_is_none(tmp_path) -> None:
    with opened("", tmp_path, "title", CONFIG) as sinks:
        assert sinks == []
