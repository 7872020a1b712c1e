"""What a config leaves open: the number of steps, evaluations, the rate, what the data found."""

from __future__ import annotations

import types

import pytest
from ml_collections import ConfigDict, config_dict

from train.configs.common import default_config
from train.experiment.settled import settled
from train.registry import ConfigError


def data(epoch: int = 10, **found):
    return types.SimpleNamespace(steps_per_epoch=epoch, found=found)


def config(epochs=3.0, steps=0, every=-1, **train):
    made = default_config()
    made.train.update({"epochs": epochs, "steps": steps, "checkpoint_every": every, **train})
    made.eval.every = every
    return made.lock()


@pytest.mark.parametrize(
    ("epoch", "settings", "steps", "every"),
    [
        (10, {}, 30, 10),
        (10, {"epochs": 0.55}, 6, 6),
        (10, {"min_steps": 150}, 150, 15),  # fifteen epochs: ten evaluations
        (100, {"min_steps": 150}, 300, 100),
        (10_000, {}, 30_000, 2000),
        (7, {"epochs": 0.0, "steps": 20}, 20, 7),
        (1, {"epochs": 0.01}, 1, 1),
    ],
)
def test_lengths_go_by_the_data(epoch, settings, steps, every) -> None:
    found = settled(config(**settings), data(epoch))
    assert (found.train.steps, found.eval.every) == (steps, every)
    assert found.train.checkpoint_every == every
    assert settled(found, data(99)) is found  # once found, it stays


def test_what_is_given_stays() -> None:
    given = config(epochs=0.0, steps=20, every=5)
    assert settled(given, data()) is given
    half = config(every=4)
    assert settled(half, data()).eval.every == 4
    assert half.train.steps == 0  # the caller's is as it was


def test_found_values_fill_what_is_open() -> None:
    made = config()
    found = settled(made, data(**{"eval.mmd_split": "dev", "eval.final": ("a",)}))
    assert found.eval.mmd_split == "validation"
    assert found.eval.final == ("validation", "test")
    with made.unlocked():
        made.eval.final = ()
    assert settled(made, data(**{"eval.final": ("dev",)})).eval.final == ("dev",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5}, "train.epochs is 3 and train.steps 5; .*Set one of them to 0"),
        ({"epochs": -1.0}, "train.epochs is -1.0; expected"),
        ({"epochs": float("nan")}, "train.epochs is nan"),
    ],
)
def test_lengths_that_contradict_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        settled(config(**settings), data())


def test_the_rate_goes_by_the_checkpoints_width(checkpoint) -> None:
    made = config()
    with made.unlocked():
        made.optimizer.learning_rate = config_dict.placeholder(float)
        made.model = ConfigDict({"pretrained": checkpoint, "revision": "", "offline": False})
    assert settled(made, data()).optimizer.learning_rate == pytest.approx(1e-4 * 384 / 16)
    with made.unlocked():
        del made.model["pretrained"]
    with pytest.raises(ConfigError, match="learning_rate is None"):
        settled(made, data())
