"""Calibration error against a literal NumPy version; the t-test against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.metrics

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


def test_bins_are_closed_on_the_right():
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], np.float32)
    bins = calibration.calibration_bins(probabilities, np.zeros(3, int), bins=4)
    assert bins.count.tolist() == [0.0, 1.0, 1.0, 1.0]


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


@pytest.mark.parametrize("count", [200, 197, 7])
def test_adaptive_bins_hold_equally_many(count):
    probabilities, labels = predictions(count)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    parts = np.array_split(np.argsort(confidence), 10)
    expected = sum(abs((right[part] - confidence[part]).sum()) for part in parts) / count
    value = calibration.adaptive_calibration_error(probabilities, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    # What does not count may hold anything.
    more = np.concatenate([probabilities, np.full((5, 3), np.nan, np.float32)])
    where = np.arange(count + 5) < count
    masked = jax.jit(calibration.adaptive_calibration_error)(
        more, np.concatenate([labels, np.zeros(5, int)]), where=where
    )
    np.testing.assert_allclose(masked, expected, rtol=1e-5)


def test_likelihood_and_brier_score_are_those_of_sklearn():
    probabilities, labels = predictions()
    where = np.arange(200) < 120
    exact = probabilities[:120].astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    likelihood = sklearn.metrics.log_loss(labels[:120], exact)
    value = calibration.negative_log_likelihood(np.log(probabilities), labels, where=where)
    np.testing.assert_allclose(value, likelihood, rtol=1e-5)
    brier = sklearn.metrics.brier_score_loss(labels[:120], exact, scale_by_half=False)
    value = calibration.brier_score(probabilities, labels, where=where)
    np.testing.assert_allclose(value, brier, rtol=1e-5)


def test_the_temperature_minimises_the_likelihood():
    rng = np.random.default_rng(0)
    logits = 3.0 * rng.normal(size=(500, 4))
    odds = np.exp(logits / 2.5)  # the truth is drawn at this temperature
    labels = np.array([rng.choice(4, p=row / row.sum()) for row in odds])

    def likelihood(temperature):
        scaled = logits / temperature
        return sklearn.metrics.log_loss(
            labels, np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)
        )

    expected = scipy.optimize.minimize_scalar(likelihood, (0.5, 5.0), tol=1e-8).x
    value = jax.jit(calibration.fit_temperature)(jnp.asarray(logits, jnp.float32), labels)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert 2.0 < value < 3.0
    right = calibration.fit_temperature(jnp.asarray(logits), logits.argmax(1))
    assert right == pytest.approx(0.01, rel=1e-3)
    none = calibration.fit_temperature(jnp.asarray(logits), labels, where=jnp.zeros(500, bool))
    assert np.isnan(none)
    assert calibration.fit_temperature(jnp.ones((3, 2)), jnp.array([0, 1, 0])) == 1.0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"labels \[B\], got \(4, 3\) and \(5,\)"):
        calibration.calibration_bins(jnp.ones((4, 3)), jnp.ones(5, int))
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        calibration.calibration_bins(jnp.ones((4, 3)), jnp.ones(4, int), bins=0)


@pytest.mark.parametrize("draws", [2, 3, 20])
def test_the_t_test_is_scipys(draws):
    rng = np.random.default_rng(draws)
    gap, spread = rng.normal(size=300), rng.uniform(0.1, 3.0, size=300)
    first = rng.normal(size=(draws, 300)).astype(np.float32)
    second = (gap + spread * rng.normal(size=(draws, 300))).astype(np.float32)
    expected = scipy.stats.ttest_ind(
        first.astype(np.float64), second.astype(np.float64), equal_var=False
    ).pvalue
    assert (expected < 0.05).any()
    assert (expected > 0.5).any()
    p_value = jax.jit(calibration.equal_means_p_value)(first, second)
    np.testing.assert_allclose(p_value, expected, rtol=5e-4, atol=1e-6)


def test_samples_that_do_not_vary_differ_or_do_not():
    first, second = jnp.array([[1.0, 1.0]] * 3), jnp.array([[1.0, 1.5]] * 3)
    assert calibration.equal_means_p_value(first, second).tolist() == [1.0, 0.0]


def test_certain_is_what_differs_from_the_second_answer():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 50, 4)) + rng.normal(size=(50, 4))
    probabilities = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
    expected = []
    for example in probabilities.astype(np.float64).transpose(1, 2, 0):  # [classes, passes]
        second, first = np.argsort(example.mean(axis=1))[-2:]
        test = scipy.stats.ttest_ind(example[first], example[second], equal_var=False)
        expected.append(test.pvalue < 0.05)
    assert 0 < sum(expected) < 50
    certain = jax.jit(calibration.certain_predictions)(probabilities)
    np.testing.assert_array_equal(certain, expected)


def test_pavpu_counts_right_and_certain_and_wrong_and_uncertain():
    correct = jnp.array([True, True, False, False, True])
    certain = jnp.array([True, False, True, False, True])
    where = jnp.array([True, True, True, True, False])
    assert calibration.patch_accuracy_vs_uncertainty(correct, certain) == pytest.approx(0.6)
    value = calibration.patch_accuracy_vs_uncertainty(correct, certain, where=where)
    assert value == pytest.approx(0.5)


def test_bad_passes_are_named():
    with pytest.raises(ValueError, match="with S >= 2"):
        calibration.equal_means_p_value(jnp.ones((1, 3)), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="2 passes and 2 classes"):
        calibration.certain_predictions(jnp.ones((5, 3, 1)))
    with pytest.raises(ValueError, match=r"must be \[B\]"):
        calibration.patch_accuracy_vs_uncertainty(jnp.ones(3, bool), jnp.ones(4, bool))
