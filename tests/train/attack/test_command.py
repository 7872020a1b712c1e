"""What the command reads of a run's folder."""

from __future__ import annotations

import json
import types

import pytest
import rich.console

from train.attack import __main__ as command
from train.registry import ConfigError
from train.run.folder import CheckpointError, to_json


@pytest.mark.fault(
    "A run's JSON that was edited and is still JSON",
    "The report, predicting, attacks and what starts from it say which file and what is wrong",
)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("alignment", {"weight": 0.1}, "KeyError: 'method'"),
        ("eval", None, "TypeError: .*NoneType"),
        ("eval", {"mmd_split": 3}, "TypeError: "),
    ],
)
def test_a_runs_config_that_was_edited_is_named(
    tmp_path, tiny_config, monkeypatch, key, value, message
) -> None:
    def read(split: str) -> list[str]:
        return ["an example"] * len(split)

    victim = types.SimpleNamespace(
        state=types.SimpleNamespace(step=3), data=types.SimpleNamespace(read=read)
    )
    monkeypatch.setattr(command, "restore_victim", lambda _: victim)
    monkeypatch.setattr(command, "make_attack", lambda *_: None)
    monkeypatch.setattr(command.importlib.metadata, "version", lambda _: "0.3.10")
    for flag in ("SEED", "SPLIT", "OUTPUT"):
        monkeypatch.setattr(command, flag, types.SimpleNamespace(value=None))
    (tmp_path / "config.json").write_text(json.dumps({**to_json(tiny_config()), key: value}))
    with pytest.raises(CheckpointError, match=f"config.json does not hold.*: {message}"):
        command.attack_run(tmp_path, next(iter(command.RECIPES)), rich.console.Console())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_unknown_recipe_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"'pws'.* bae, deepwordbug, pwws, pruthi\.$"):
        command.attack_run(tmp_path, "pws", rich.console.Console())
