"""Classification: softmax cross-entropy, accuracy, expected calibration error, Brier score."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from align_jax import calibration
from train.registry import ConfigError
from train.tasks.base import Batch, Task
from train.tasks.metrics import Calibration, Mean


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One label per example. The batch holds "label", int [B]; the model returns logits [B, C].

    Attributes:
        calibration_bins: number of equally wide bins of the expected calibration error.
        label_smoothing: what of each label's probability the loss spreads over all classes, as in
            `optax.smooth_labels`; the metric "nll" is without.

    Raises:
        ConfigError: a smoothing outside [0, 1).
    """

    inputs: tuple[str, ...] = ("image",)
    calibration_bins: int = 10
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(
                f"task.label_smoothing is {self.label_smoothing}; expected at least 0, below 1."
            )

    @property
    def logit_bins(self) -> int | None:
        """As many as of the ECE."""
        return self.calibration_bins

    def loss(self, outputs: Float[Array, "B C"], batch: Batch) -> Float[Array, "B"]:
        """Cross-entropy of each example, in nats."""
        logits = outputs.astype(jnp.float32)
        if not self.label_smoothing:
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        labels = jax.nn.one_hot(batch["label"], logits.shape[-1])
        return optax.softmax_cross_entropy(
            logits, optax.smooth_labels(labels, self.label_smoothing)
        )

    def metrics(self, outputs: Float[Array, "B C"], batch: Batch) -> dict[str, Any]:
        """Accuracy in [0, 1], the reliability bins, and the Brier score in [0, 2]."""
        probabilities, mask = self.probabilities(outputs), batch["mask"]
        truth = jax.nn.one_hot(batch["label"], probabilities.shape[-1])
        bins = calibration.calibration_bins(
            probabilities, batch["label"], bins=self.calibration_bins, where=mask
        )
        return {
            "accuracy": Mean.of(probabilities.argmax(axis=-1) == batch["label"], mask),
            "ece": Calibration(bins),
            "brier": Mean.of(jnp.square(probabilities - truth).sum(axis=-1), mask),
        }

    def stochastic_metrics(self, outputs: Float[Array, "S B C"], batch: Batch) -> dict[str, Any]:
        """PAvPU, and the share of certain predictions; the mean of the passes predicts."""
        probabilities, mask = self.probabilities(outputs), batch["mask"]
        correct = probabilities.mean(axis=0).argmax(axis=-1) == batch["label"]
        certain = calibration.certain_predictions(probabilities)
        return {"pavpu": Mean.of(correct == certain, mask), "certain": Mean.of(certain, mask)}

    def probabilities(self, outputs: Float[Array, "*S B C"]) -> Float[Array, "*S B C"]:
        """Of each class, float32."""
        return jax.nn.softmax(outputs.astype(jnp.float32))

    def predictions(self, outputs: Float[Array, "B C"], batch: Batch) -> dict[str, Array]:
        """The most probable class of each example; and its logits, if calibration reads them."""
        predicted = {"prediction": outputs.argmax(axis=-1), "label": batch["label"]}
        if self.logit_bins is None:
            return predicted
        return predicted | {"logits": outputs.astype(jnp.float32)}
