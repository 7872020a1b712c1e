"""A trained run as an attack sees it: texts in, probabilities out."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from train.data.labelled import LabelledTexts
from train.predictor import batch_outputs, restore_predictor
from train.registry import ConfigError
from train.step.state import TrainState


class Victim:
    """Classifies texts in batches of few different shapes.

    An attack asks about few texts at a time and about many, so that a batch is filled up to the
    next power of two; the lengths are those of the data's buckets.

    At most `batch_size` at once; 0 for 8 on a CPU, whose caches so few suit, and 32 elsewhere.
    """

    def __init__(self, data: LabelledTexts, state: TrainState, batch_size: int = 0) -> None:
        self.data = data
        self.state = state
        self.batch_size = batch_size or (8 if jax.default_backend() == "cpu" else 32)

    def __call__(self, texts: Sequence[str | tuple[str, ...]]) -> np.ndarray:
        """Probabilities of the classes, float64 [n, C], of n texts or tuples of the data's fields.

        Each row adds up to 1 as far as a float64 can, for TextAttack takes what is off by 1e-6 for
        logits.
        """
        examples = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        found = [np.zeros((0, len(self.data.label_names)))]
        for start in range(0, len(examples), self.batch_size):
            chunk = examples[start : start + self.batch_size]
            rows = min(1 << (len(chunk) - 1).bit_length(), self.batch_size)
            found.append(batch_outputs(self.data, self.state, chunk, rows))
        probabilities = np.concatenate(found)
        return probabilities / probabilities.sum(axis=1, keepdims=True)


def restore_victim(folder: pathlib.Path, batch_size: int = 0) -> Victim:
    """The model that a run ended with; `batch_size` as of `Victim`.

    Raises:
        CheckpointError: the folder is no run's, or it has no checkpoint yet.
        ConfigError: it was no run on classes of texts.
    """
    data, state = restore_predictor(folder)
    if not isinstance(data, LabelledTexts) or not data.label_names:
        raise ConfigError(
            f"{folder} is no classification of texts; attacks change words until the class changes."
        )
    return Victim(data, state, batch_size)
