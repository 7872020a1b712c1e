"""Texts: classification and regression, with the official metrics of their benchmarks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.stats
import sklearn.metrics
from jaxtyping import Array, Bool, Float

from train.registry import ConfigError, check_known
from train.tasks.base import Batch, Task
from train.tasks.classification import Classification
from train.tasks.metrics import Mean

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

# Metrics that are no sum over examples: name -> function of labels and predictions.
CORPUS_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "matthews": sklearn.metrics.matthews_corrcoef,
    "f1": functools.partial(sklearn.metrics.f1_score, zero_division=0.0),
    "macro_f1": functools.partial(sklearn.metrics.f1_score, average="macro", zero_division=0.0),
}


@dataclasses.dataclass(frozen=True)
class TextClassification(Classification):
    """Classification of texts or pairs; accuracy and ECE, and what else the benchmark reports.

    Attributes:
        corpus: names in `CORPUS_METRICS`. "f1" is that of class 1.

    Raises:
        ConfigError: an unknown metric.
    """

    inputs: tuple[str, ...] = TEXT_INPUTS
    corpus: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "corpus", tuple(self.corpus))
        for name in self.corpus:
            check_known("task.corpus names", name, CORPUS_METRICS)

    def corpus_metrics(
        self, predictions: Mapping[str, np.ndarray], references: Any = None
    ) -> dict[str, float]:
        """The metrics of a whole split."""
        return {
            name: float(CORPUS_METRICS[name](predictions["label"], predictions["prediction"]))
            for name in self.corpus
        }


@dataclasses.dataclass(frozen=True)
class MultipleChoice(TextClassification):
    """Which of C texts goes on? The batch's texts are [B, C, N]; the model returns logits [B, C].

    Each of the B x C texts is a sample of the alignment.
    """

    def sample_mask(self, batch: Batch) -> Bool[Array, "B*C"]:
        """Whether each text counts in the alignment loss."""
        return jnp.repeat(batch["mask"], batch["input_ids"].shape[1])


@dataclasses.dataclass(frozen=True)
class TextRegression(Task):
    """A number for each text or pair. The batch holds "label", float [B]; the model returns [B, 1].

    Attributes:
        center: what the model's output of 0 stands for, such as the mean of the labels.
        scale: what an output of 1 is above it, such as their standard deviation. A new head starts
            near 0 and moves slowly: with both, labels of any size are learnt alike.

    Raises:
        ConfigError: the scale is not above 0.
    """

    inputs: tuple[str, ...] = TEXT_INPUTS
    center: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ConfigError(f"task.scale is {self.scale}; expected a number above 0.")

    def loss(self, outputs: Float[Array, "B 1"], batch: Batch) -> Float[Array, "B"]:
        """Squared error of each example, in units of the scale, squared."""
        return jnp.square(self._error(outputs, batch))

    def metrics(self, outputs: Float[Array, "B 1"], batch: Batch) -> dict[str, Any]:
        """Mean absolute error, in the label's unit."""
        error = jnp.abs(self._error(outputs, batch)) * self.scale
        return {"absolute_error": Mean.of(error, batch["mask"])}

    def _error(self, outputs: Float[Array, "B 1"], batch: Batch) -> Float[Array, "B"]:
        """In units of the scale; of labels far from 0, a difference of two would lose digits."""
        return outputs[:, 0].astype(jnp.float32) - (batch["label"] - self.center) / self.scale

    def numbers(self, outputs: Float[Array, "B 1"]) -> Float[Array, "B"]:
        """The predicted number of each example, in the label's unit, float32."""
        return outputs[:, 0].astype(jnp.float32) * self.scale + self.center

    def predictions(self, outputs: Float[Array, "B 1"], batch: Batch) -> dict[str, Array]:
        """The predicted number of each example."""
        return {"prediction": self.numbers(outputs), "label": batch["label"]}

    def in_units(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A model's parameters with the last layer, "classifier", in the label's unit."""
        last = params["classifier"]
        scaled = {
            "kernel": last["kernel"] * self.scale,
            "bias": last["bias"] * self.scale + self.center,
        }
        return {**params, "classifier": {**last, **scaled}}

    def corpus_metrics(
        self, predictions: Mapping[str, np.ndarray], references: Any = None
    ) -> dict[str, float]:
        """Pearson's and Spearman's correlation of predictions and labels, in [-1, 1]."""
        label, prediction = (
            np.asarray(predictions[name], np.float64) for name in ("label", "prediction")
        )
        # Of a constant, neither is defined; as a prediction it is worth no correlation at all.
        if len(label) < 2 or np.ptp(label) == 0 or np.ptp(prediction) == 0:
            return {"pearson": 0.0, "spearman": 0.0}
        return {
            "pearson": float(scipy.stats.pearsonr(label, prediction).statistic),
            "spearman": float(scipy.stats.spearmanr(label, prediction).statistic),
        }
