"""What is measured over the examples of a split, and yardsticks that training does not optimise."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import scipy.special

from align_jax.yardstick import TokenSample
from train.data.base import Metadata, ordered_batches
from train.run import evaluation
from train.run.evaluation import told_apart


def sample(query: np.ndarray, key: np.ndarray) -> TokenSample:
    return TokenSample(query, key, np.ones(len(query), bool), np.ones(len(key), bool))


def test_a_classifier_tells_apart_what_differs_and_guesses_what_does_not(rng) -> None:
    query, key = rng.normal(size=(2, 1024, 3, 8))
    key[:, 1] += 1.0  # another mean
    key[:, 2] *= 2.0  # another spread, which no line could see
    alike, moved, spread = told_apart(sample(query, key))
    assert abs(alike - 0.5) < 0.06
    assert moved > 0.85
    assert spread > 0.8


def test_it_is_asked_about_tokens_that_it_has_not_seen(rng) -> None:
    """Random labels can be learnt by heart: only unseen tokens show that there is no rule."""
    query, key = rng.normal(size=(2, 64, 1, 200))
    assert abs(told_apart(sample(query, key))[0] - 0.5) < 0.2


def test_padding_is_not_shown(rng) -> None:
    query, key = rng.normal(size=(2, 400, 1, 4))
    key[200:] += 50.0
    mask = np.arange(400) < 200
    found = told_apart(TokenSample(query, key, mask, mask))
    np.testing.assert_array_equal(found, told_apart(sample(query[:200], key[:200])))


def test_too_few_tokens_tell_nothing(rng) -> None:
    assert np.isnan(told_apart(sample(*rng.normal(size=(2, 3, 1, 4))))).all()


def test_distances_are_those_of_the_first_examples(monkeypatch, rng) -> None:
    """They may fill several batches, the last one in part."""
    clouds = [sample(*rng.normal(size=(2, 16, 2, 3)).astype(np.float32)) for _ in range(2)]

    def measured(state, batch, number, bandwidth):
        return {"layer_0": np.full(2, batch["x"].mean())}, {"layer_0": clouds[number]}

    data = mock.Mock(metadata=Metadata())
    data.eval_batches.return_value = ordered_batches({"x": np.arange(10.0)}, 4)
    monkeypatch.setattr(evaluation, "_measured", measured)
    found = evaluation.measure_clouds(None, data, "validation", 6, 1.0)
    np.testing.assert_allclose(found["mmd_per_head"]["layer_0"], np.arange(6.0).mean())
    assert found["mmd"] == 2 * np.arange(6.0).mean()
    # Of the tokens of both batches as many as of one are compared.
    norms = [np.linalg.norm(x.query, axis=-1) for x in clouds]
    assert np.concatenate(norms).min() < found["query_norm"] < np.concatenate(norms).max()
    assert found["query_norm"] != norms[0].mean()
    assert np.isfinite(found["scale_free_mmd_per_head"]["layer_0"]).all()


def test_statistics_of_attention_are_means_over_the_first_examples(monkeypatch) -> None:
    data = mock.Mock(metadata=Metadata())
    data.eval_batches.return_value = ordered_batches({"x": np.arange(10.0)}, 4)
    monkeypatch.setattr(evaluation, "_attention", lambda _, batch: {"rank": batch["x"].mean()})
    assert evaluation.measure_attention(None, data, "validation", 6) == {"rank": 2.5}


def test_a_temperature_divides_the_logits(rng) -> None:
    logits, labels = rng.normal(size=(20, 3)), rng.integers(0, 3, 20)
    found = evaluation.calibration_metrics(logits, labels, temperature=4.0)
    chances = np.exp(scipy.special.log_softmax(logits / 4.0, axis=-1))
    assert found["temperature"] == 4.0
    assert found["nll_scaled"] == pytest.approx(
        -np.log(chances[range(20), labels]).mean(), rel=1e-5
    )
    brier = ((chances - np.eye(3)[labels]) ** 2).sum(-1).mean()
    assert found["brier_scaled"] == pytest.approx(brier, rel=1e-5)
    for label in (-1, 3):
        with pytest.raises(ValueError, match=f"labels hold {label} at .* 3 classes"):
            evaluation.calibration_metrics(logits, np.where(labels == 1, label, labels))
