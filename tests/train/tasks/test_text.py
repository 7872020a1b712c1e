"""Text tasks against scikit-learn and SciPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from train.registry import ConfigError
from train.tasks.metrics import compute
from train.tasks.text import MultipleChoice, TextClassification, TextRegression


def test_classification_reports_the_benchmarks_metrics(rng) -> None:
    label, prediction = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    values = TextClassification(corpus=("matthews", "f1", "macro_f1")).corpus_metrics(
        {"label": label, "prediction": prediction}
    )
    assert values == pytest.approx(
        {
            "matthews": matthews_corrcoef(label, prediction),
            "f1": f1_score(label, prediction),
            "macro_f1": f1_score(label, prediction, average="macro"),
        }
    )
    assert TextClassification().corpus_metrics({}) == {}


def test_a_masked_examples_choices_are_masked_in_the_alignment() -> None:
    batch = {"mask": np.array([True, False]), "input_ids": np.zeros((2, 3, 4), np.int32)}
    assert MultipleChoice().sample_mask(batch).tolist() == [True] * 3 + [False] * 3


def test_an_unknown_metric_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match='mathews.*did you mean "matthews"'):
        TextClassification(corpus=("mathews",))


def test_regression_is_squared_error_and_correlations(rng) -> None:
    outputs = rng.normal(size=(6, 1)).astype(np.float32)
    label = rng.uniform(0, 5, 6).astype(np.float32)
    batch = {"label": label, "mask": np.array([True] * 4 + [False] * 2)}
    task = TextRegression()
    np.testing.assert_allclose(
        task.loss(jnp.asarray(outputs), batch), (outputs[:, 0] - label) ** 2, rtol=1e-5
    )
    error = compute(task.metrics(jnp.asarray(outputs), batch))["absolute_error"]
    assert error == pytest.approx(np.abs(outputs[:4, 0] - label[:4]).mean(), rel=1e-5)

    values = task.corpus_metrics(task.predictions(jnp.asarray(outputs), batch))
    assert values["pearson"] == pytest.approx(pearsonr(label, outputs[:, 0])[0], abs=1e-6)
    assert values["spearman"] == pytest.approx(spearmanr(label, outputs[:, 0])[0], abs=1e-6)


def test_a_constant_prediction_has_no_correlation() -> None:
    values = TextRegression().corpus_metrics({"label": np.arange(4.0), "prediction": np.ones(4)})
    assert values == {"pearson": 0.0, "spearman": 0.0}


def test_a_regression_in_other_units_measures_the_same() -> None:
    """Labels of a thousand million, as prices or times have them, lose no digits either."""
    scaled = TextRegression(center=1e9, scale=128.0)
    outputs, label = jnp.array([[0.5], [-1.0]]), jnp.array([1e9 + 128, 1e9 - 128], jnp.float32)
    batch = {"label": label, "mask": jnp.array([True, True])}
    np.testing.assert_allclose(scaled.loss(outputs, batch), [0.25, 0.0])
    np.testing.assert_allclose(scaled.metrics(outputs, batch)["absolute_error"].compute(), 32.0)
    np.testing.assert_allclose(
        scaled.predictions(outputs, batch)["prediction"], [1e9 + 64, 1e9 - 128]
    )
    last = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([0.5])}
    found = TextRegression(center=10.0, scale=4.0).in_units({"classifier": last, "encoder": 1})
    assert (found["classifier"]["kernel"].item(), found["classifier"]["bias"].item()) == (8.0, 12.0)
    assert found["encoder"] == 1
    with pytest.raises(ConfigError, match="task.scale is 0.0; expected a number above 0"):
        TextRegression(scale=0.0)
