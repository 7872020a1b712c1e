"""A trained run that labels texts: its data source, its state, and what it makes of a batch."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from train.data.base import Batch, DataSource, pad
from train.registry import ConfigError
from train.run.loop import restore_run
from train.step.state import TrainState
from train.tasks.classification import Classification
from train.tasks.text import TextRegression


class PredictSource(DataSource, Protocol):
    """What predicting needs of a data source."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of an example's texts."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes in order; none for what is no classification."""

    def inputs(self, texts: Sequence[tuple[str, ...]]) -> Batch:
        """The model's inputs for new examples, one tuple of `fields` each."""


def restore_predictor(
    folder: pathlib.Path, step: int | None = None
) -> tuple[PredictSource, TrainState]:
    """The data source and the state of a run that can predict; `step` is a checkpoint's.

    Raises:
        CheckpointError: the folder is no run's, or it has no such checkpoint.
        ConfigError: it was no run on texts or questions, or what it was made of is not there any
            more.
    """
    experiment, state = restore_run(folder, step=step)
    data: Any = experiment.data
    if not hasattr(data, "fields"):
        raise ConfigError(
            f"{folder} is a run on {experiment.config.data.name!r}, which holds no texts; only "
            f"runs on texts or questions can predict."
        )
    return data, state


def batch_outputs(
    data: PredictSource, state: TrainState, texts: Sequence[tuple[str, ...]], rows: int
) -> np.ndarray:
    """What the model makes of n texts, float64: probabilities [n, C], or for a regression [n, 1].

    The batch is filled up to `rows`: each number of rows, and each length, is compiled once.
    """
    padded = pad({**data.inputs(texts), "mask": np.ones(len(texts), bool)}, rows)
    return np.asarray(_outputs(state, padded))[: len(texts)].astype(np.float64)


@jax.jit
def _outputs(state: TrainState, batch: Batch) -> Any:
    """Probabilities [B, C], or numbers [B, 1]."""
    outputs = state.task.apply(state.model, state.variables, batch, train=False)
    if isinstance(state.task, Classification):
        return state.task.probabilities(outputs)
    if isinstance(state.task, TextRegression):
        return state.task.numbers(outputs)[:, None]
    return outputs
