"""What a config leaves open until the data and the checkpoint are known."""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

from train.data.base import DataSource
from train.data.text import checkpoint_width
from train.registry import ConfigError

EACH_EPOCH = -1  # of eval.every and train.checkpoint_every
MOST_EVALUATIONS, LONGEST = 10, 2000  # in a short run; steps from one to the next in a long one
RATE, WIDTH = 1e-4, 384  # MiniLM's; wider encoders take a lower rate, BERT-base half of it
OPEN: tuple[Any, ...] = (None, "", (), [])


def settled(config: ConfigDict, data: DataSource) -> ConfigDict:
    """The config with everything in it that it left open; itself, if that is nothing.

    The learning rate, if it is None, is chosen by the checkpoint's width; with `train.epochs`, the
    number of steps is that of the data; what the data have found is filled in. All of this stands
    in the run's folder, so that its model is restored without the data.

    Raises:
        ConfigError: both epochs and steps are given, epochs are negative, or there is no checkpoint
            to choose the rate by.
    """
    values = {}
    for key, value in data.found.items():
        section, name = key.split(".")
        if config[section][name] in OPEN:
            values[key] = value
    if config.optimizer.learning_rate is None:
        values["optimizer.learning_rate"] = _rate(config)
    values |= _lengths(config, data)
    if not values:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        for key, value in values.items():
            section, name = key.split(".")
            config[section][name] = value
    return config


def _rate(config: ConfigDict) -> float:
    if "pretrained" not in config.model:
        raise ConfigError(
            "optimizer.learning_rate is None, and the model has no checkpoint that it could be "
            "chosen by. Give a number."
        )
    model = config.model
    return RATE * WIDTH / checkpoint_width(model.pretrained, model.revision, model.offline)


def _lengths(config: ConfigDict, data: DataSource) -> dict[str, Any]:
    """The number of steps, and how many lie between evaluations and between checkpoints."""
    train, values = config.train, {}
    epochs, steps = train.get("epochs", 0.0), train.steps
    every = {"eval.every": config.eval.every, "train.checkpoint_every": train.checkpoint_every}
    if not epochs and EACH_EPOCH not in every.values():
        return {}
    if not (math.isfinite(epochs) and epochs >= 0):
        raise ConfigError(f"train.epochs is {epochs}; expected a number of 0 or more.")
    epoch = data.steps_per_epoch
    if epochs:
        if steps:
            raise ConfigError(
                f"train.epochs is {epochs:g} and train.steps {steps}; either says how long to "
                f"train. Set one of them to 0."
            )
        steps = max(round(epochs * epoch), train.get("min_steps", 0), 1)
        values = {"train.steps": steps, "train.epochs": 0.0}
    times = max(min(round(steps / epoch), MOST_EVALUATIONS), steps // LONGEST, 1)
    between = math.ceil(steps / times)
    return values | {key: between for key, given in every.items() if given == EACH_EPOCH}
