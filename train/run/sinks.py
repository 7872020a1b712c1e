"""Where a run's curves go beside its own folder: Weights & Biases, or a class of the user's."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

from ml_collections import ConfigDict

from train.registry import ConfigError

SINKS = {"wandb": "train.run.sinks:WeightsAndBiases"}
PROJECT = "align_jax"


class Sink(Protocol):
    """What takes curves. It is made of the run's folder, its title and its config."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point of a curve."""

    def text(self, name: str, text: str, step: int) -> None:
        """Adds a text."""

    def flush(self) -> None:
        """All points of a record have come."""

    def close(self) -> None:
        """The run has ended."""


class WeightsAndBiases:
    """A run of Weights & Biases; a run that is resumed goes on in the same one.

    The environment says where: WANDB_PROJECT (else "align_jax"), WANDB_ENTITY, WANDB_MODE=offline
    and so on.
    """

    def __init__(self, workdir: pathlib.Path, title: str, config: ConfigDict) -> None:
        import wandb

        self._points: dict[str, float] = {}
        self._step = 0
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=hashlib.sha256(f"{title} {workdir.resolve()}".encode()).hexdigest()[:16],
            name=title,
            config=config.to_dict(),
            resume="allow",
        )

    def scalar(self, name: str, value: float, step: int) -> None:
        """Keeps a point until `flush`: there is one call for all points of a step."""
        self._points[name] = value
        self._step = step

    def text(self, name: str, text: str, step: int) -> None:
        """Shows a warning."""
        self._run.alert(title=f"{name}, step {step}", text=text)

    def flush(self) -> None:
        """Sends the points."""
        if self._points:
            self._run.log(self._points, step=self._step)
            self._points = {}

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


@contextlib.contextmanager
def opened(name: str, workdir: pathlib.Path, title: str, config: ConfigDict) -> Iterator[list[Any]]:
    """The sink that `config.train.log_to` names, if any, made of the others; closed at the end.

    Raises:
        ConfigError: it is none of `SINKS` and no "module:class" of a `Sink` that can be imported.
    """
    if not name:
        yield []
        return
    module, _, attribute = SINKS.get(name, name).partition(":")
    try:
        sink = getattr(importlib.import_module(module), attribute)(workdir, title, config)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"config.train.log_to is {name!r}, which cannot be used ({error}). Expected one of "
            f"{', '.join(SINKS)}, with its package installed, or 'module:class'."
        ) from error
    try:
        yield [sink]
    finally:
        sink.close()
