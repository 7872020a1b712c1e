"""Sums and counts against NumPy on the concatenated data."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.calibration import calibration_bins
from train.tasks.metrics import Calibration, Mean, compute, merge


def test_mean_over_uneven_batches_is_the_mean_over_all_examples() -> None:
    first, second = np.array([1.0, 5.0, 3.0]), np.array([10.0])
    merged = merge({"x": Mean.of(jnp.asarray(values))} for values in (first, second))
    assert compute(merged)["x"] == pytest.approx(np.concatenate([first, second]).mean())


def test_masked_values_do_not_count_even_if_nan() -> None:
    values = jnp.array([[1.0, 2.0], [3.0, 6.0], [jnp.nan, jnp.inf]])
    mean = Mean.of(values, jnp.array([True, True, False])).compute()
    np.testing.assert_allclose(mean, [2.0, 4.0])


def test_mean_of_nothing_is_nan() -> None:
    assert np.isnan(Mean.of(jnp.ones(2), jnp.zeros(2, bool)).compute())


def test_nested_metrics_compute_to_nested_numbers() -> None:
    layers = {"layer_0": Mean(total=jnp.array([2.0, 4.0]), count=jnp.float32(2))}
    result = compute({"divergence": layers})
    np.testing.assert_allclose(result["divergence"]["layer_0"], [1.0, 2.0])


def test_calibration_merges_to_the_error_of_all_examples() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 3)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = rng.integers(0, 3, size=50)

    parts = [slice(0, 37), slice(37, 50)]
    merged = merge(
        {"ece": Calibration(calibration_bins(probabilities[p], labels[p]))} for p in parts
    )

    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * 10).astype(int), 9)
    expected = sum(
        abs(correct[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean()
        for b in set(bins)
    )
    assert compute(merged)["ece"] == pytest.approx(expected, abs=1e-5)
