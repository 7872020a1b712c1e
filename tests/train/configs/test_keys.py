"""What `--help-config` says of each key."""

from __future__ import annotations

import types

import pytest

from train import cli
from train.configs import keys


class Base:
    """A part.

    Attributes:
        first, second: two that
            share a line.
    """


class Part(Base):
    """Another.

    Args:
        third: has "a: colon" in it.

    Raises:
        ValueError: none of its attributes.
    """


def test_meanings_are_read_off_docstrings() -> None:
    two = "two that share a line."
    assert keys.attributes(Part)["third"] == 'has "a: colon" in it.'
    assert {name: keys.attributes(Part)[name] for name in ("first", "second")} == {
        "first": two, "second": two,
    }  # fmt: skip
    assert "ValueError" not in keys.attributes(Part)


def test_meanings_are_read_off_comments(monkeypatch) -> None:
    source = (
        "# of nothing\n\n# Above,\n# twice.\nconfig.a.x = 1\nconfig.a.y = (\n    2,\n)  # behind\n"
        "config.b.x = 3  # another's\nconfig.a.z = 4\n"
    )
    monkeypatch.setattr(keys.inspect, "getsource", lambda _: source)
    found = keys.comments(types.ModuleType("some"), "config.a")
    assert found == {"x": "Above, twice.", "y": "behind"}


@pytest.mark.parametrize("name", ["digits", "glue:mrpc,minilm", "planetoid:cora", "vqa:easy"])
def test_almost_every_key_has_a_meaning(name: str) -> None:
    config = cli.load_config(f"train/configs/{name.partition(':')[0]}.py:{name.partition(':')[2]}")
    lines = keys.describe(config).splitlines()
    flags = [line for line in lines if line.startswith("--config.")]
    assert len(flags) > 60
    bare = {
        line.split("=")[0].removeprefix("--config.")
        for line, after in zip(lines, [*lines[1:], "--"], strict=True)
        if line.startswith("--") and after.startswith("--")
    }
    assert bare <= {"name", "seed", "data.name", "model.name", "task.name"}
