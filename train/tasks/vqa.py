"""Visual question answering: an answer out of a vocabulary, several of them more or less right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from align_jax.calibration import confidence_bins
from train.registry import ConfigError
from train.tasks.base import Batch
from train.tasks.classification import Classification
from train.tasks.metrics import Calibration, Mean
from train.tasks.vqa_answers import corpus_accuracy


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Classification):
    """Answers to questions about images; each answer has a score of its own.

    The batch holds "score", float [B, C] in [0, 1], and "label", int [B], the answer of the highest
    score, -1 where none has any. The model returns logits [B, C], each that of a sigmoid.
    """

    inputs: tuple[str, ...] = ("question", "image", "question_mask", "image_mask")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing:
            raise ConfigError(
                f"task.label_smoothing is {self.label_smoothing}; {type(self).__name__} has scores "
                f"in place of labels. Set it to 0."
            )

    @property
    def logit_bins(self) -> None:
        """None: an answer's probability is a sigmoid's, which no temperature of all scales."""

    def loss(self, outputs: Float[Array, "B C"], batch: Batch) -> Float[Array, "B"]:
        """Binary cross-entropy of each example, in nats, summed over the answers."""
        logits = outputs.astype(jnp.float32)
        return optax.sigmoid_binary_cross_entropy(logits, batch["score"]).sum(axis=-1)

    def metrics(self, outputs: Float[Array, "B C"], batch: Batch) -> dict[str, Any]:
        """The chosen answers' mean score as "accuracy", and the reliability bins.

        To the reliability bins, right is only the answer of the highest score.
        """
        chosen = outputs.argmax(axis=-1)
        score = jnp.take_along_axis(batch["score"], chosen[:, None], axis=-1)[:, 0]
        confidence = self.probabilities(outputs).max(axis=-1)
        # A question without a known answer, -1, is answered wrongly whatever is chosen.
        bins = confidence_bins(
            confidence, chosen == batch["label"], bins=self.calibration_bins, where=batch["mask"]
        )
        return {"accuracy": Mean.of(score, batch["mask"]), "ece": Calibration(bins)}

    def corpus_metrics(
        self, predictions: Mapping[str, np.ndarray], references: Any = None
    ) -> dict[str, float]:
        """The official accuracy against `train.data.visual_questions.HumanAnswers`, if given."""
        if references is None:
            return {}
        chosen = [references.answers[index] for index in predictions["prediction"]]
        return {"vqa_accuracy": corpus_accuracy(chosen, references.people)}

    def probabilities(self, outputs: Float[Array, "*S B C"]) -> Float[Array, "*S B C"]:
        """Of each answer that it is right, float32; they do not add up to 1."""
        return jax.nn.sigmoid(outputs.astype(jnp.float32))
