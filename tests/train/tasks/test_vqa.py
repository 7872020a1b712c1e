"""Answers with scores: loss and metrics against NumPy, the official accuracy by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from train.data.visual_questions import HumanAnswers
from train.registry import ConfigError
from train.tasks.metrics import compute
from train.tasks.vqa import QuestionAnswering

LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, 0.1, 0.0], [1.0, 4.0, -2.0]], np.float32)
BATCH = {
    "score": np.array([[1.0, 0.3, 0.0], [0.0, 0.6, 0.9], [0.0, 0.0, 0.0]], np.float32),
    "label": np.array([0, 2, -1]),
    "mask": np.array([True, True, True]),
}


def test_the_loss_is_the_sum_of_the_answers_cross_entropies() -> None:
    losses = QuestionAnswering().loss(jnp.asarray(LOGITS), BATCH)
    probabilities = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    for row in range(3):
        expected = sum(
            # A soft score is a mixture of both labels.
            score * sklearn.metrics.log_loss([1], [p], labels=[0, 1])
            + (1 - score) * sklearn.metrics.log_loss([0], [p], labels=[0, 1])
            for score, p in zip(BATCH["score"][row], probabilities[row], strict=True)
        )
        assert losses[row] == pytest.approx(expected, rel=1e-5)


def test_accuracy_is_the_chosen_answers_score() -> None:
    values = compute(QuestionAnswering().metrics(jnp.asarray(LOGITS), BATCH))
    assert values["accuracy"] == pytest.approx((1.0 + 0.6 + 0.0) / 3)
    # Right is the best answer alone: the first question's.
    confidence = 1 / (1 + np.exp(-LOGITS.max(axis=1)))
    assert values["ece"] == pytest.approx(np.abs(np.array([1, 0, 0]) - confidence).sum() / 3)
    masked = BATCH | {"mask": np.array([True, False, False])}
    assert compute(QuestionAnswering().metrics(jnp.asarray(LOGITS), masked))["accuracy"] == 1.0


def test_the_official_accuracy_is_that_against_people() -> None:
    people = [("cat",) * 3 + ("dog",) * 7, ("two",) * 10]
    references = HumanAnswers(("cat", "two", "dog"), people)
    task = QuestionAnswering()
    values = task.corpus_metrics({"prediction": np.array([0, 1])}, references)
    # Of ten answers, three are right: 0.9 on average over nine of them at a time.
    assert values["vqa_accuracy"] == pytest.approx((0.9 + 1.0) / 2)
    assert task.corpus_metrics({"prediction": np.array([0, 1])}) == {}


def test_probabilities_are_sigmoids() -> None:
    found = jax.jit(QuestionAnswering().probabilities)(LOGITS)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-LOGITS)), rtol=1e-6)


def test_labels_of_answers_with_scores_are_not_smoothed() -> None:
    with pytest.raises(ConfigError, match="label_smoothing is 0.1; QuestionAnswering has scores"):
        QuestionAnswering(label_smoothing=0.1)
