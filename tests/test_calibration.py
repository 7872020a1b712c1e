"""Calibration error against a literal NumPy version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import calibration


def oracle(probabilities, labels, bins):
    confidence, prediction = probabilities.max(1), probabilities.argmax(1)
    error = 0.0
    for lower, upper in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True):
        inside = (confidence > lower) & (confidence <= upper)
        if inside.any():
            gap = (prediction[inside] == labels[inside]).mean() - confidence[inside].mean()
            error += inside.mean() * abs(gap)
    return error


def predictions(count=200, classes=3):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, classes)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), rng.integers(classes, size=count)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_expected_calibration_error(bins):
    probabilities, labels = predictions()
    value = calibration.expected_calibration_error(probabilities, labels, bins=bins)
    np.testing.assert_allclose(value, oracle(probabilities, labels, bins), rtol=1e-5)


def test_bins_of_batches_add_up():
    probabilities, labels = predictions()
    parts = [
        calibration.calibration_bins(probabilities[i : i + 50], labels[i : i + 50])
        for i in range(0, 200, 50)
    ]
    whole = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    np.testing.assert_allclose(
        whole.expected_calibration_error(), oracle(probabilities, labels, 10), rtol=1e-5
    )


def test_masked_examples_do_not_count():
    probabilities, labels = predictions()
    where = np.arange(200) < 120
    probabilities[~where] = np.nan
    value = calibration.expected_calibration_error(probabilities, labels, where=jnp.asarray(where))
    np.testing.assert_allclose(value, oracle(probabilities[:120], labels[:120], 10), rtol=1e-5)
    empty = calibration.calibration_bins(probabilities, labels, where=jnp.zeros(200, bool))
    assert empty.expected_calibration_error() == 0.0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"labels \[B\], got \(4, 3\) and \(5,\)"):
        calibration.calibration_bins(jnp.ones((4, 3)), jnp.ones(5, int))
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        calibration.calibration_bins(jnp.ones((4, 3)), jnp.ones(4, int), bins=0)
