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


adaptive_error = jax.jit(calibration.adaptive_calibration_error)


@pytest.mark.parametrize("count", [200, 197, 7])
def test_adaptive_bins_hold_equally_many(count):
    probabilities, labels = predictions(count)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    parts = np.array_split(np.argsort(confidence), 10)
    expected = sum(abs((right[part] - confidence[part]).sum()) for part in parts) / count
    value = adaptive_error(probabilities, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    # What does not count may hold anything.
    where = np.arange(205) < count
    more = np.full((205, 3), np.nan, np.float32)
    more[where] = probabilities
    masked = adaptive_error(more, np.resize(labels, 205), where=where)
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
    with pytest.raises(ValueError, match="bins must be a whole number of at least 1, got 0"):
        calibration.calibration_bins(jnp.ones((4, 3)), jnp.ones(4, int), bins=0)
    both, labels = jnp.full((2, 2), 0.5), jnp.array([0, 1])
    for arguments, name in (
        ((both.tolist(), labels, None), "probabilities must be an array, got a list"),
        ((both, [0, 1], None), "labels must be an array, got a list"),
        ((both, labels, [True, False]), "where must be an array, got a list"),
    ):
        with pytest.raises(TypeError, match=name):
            calibration.brier_score(*arguments[:2], where=arguments[2])


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


@pytest.mark.parametrize(("mean", "spread"), [(1000.0, 1e-3), (0.9999, 1e-6)])
def test_the_t_test_keeps_its_digits_where_the_mean_is_large(mean, spread):
    first, second = (mean + spread * np.random.default_rng(0).normal(size=(2, 20, 300))).astype(
        np.float32
    )
    expected = scipy.stats.ttest_ind(
        first.astype(np.float64), second.astype(np.float64), equal_var=False
    ).pvalue
    p_value = calibration.equal_means_p_value(first, second)
    np.testing.assert_allclose(p_value, expected, atol=1e-4)


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


def small(labels=(0, 1, 1)):
    probabilities = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    return probabilities, jnp.array(labels)


# Functions of probabilities, labels and `where`.
MEASURES = {
    "ece": calibration.expected_calibration_error,
    "adaptive": calibration.adaptive_calibration_error,
    "brier": calibration.brier_score,
    "nll": lambda p, y, **where: calibration.negative_log_likelihood(jnp.log(p), y, **where),
    "temperature": lambda p, y, **where: calibration.fit_temperature(jnp.log(p), y, **where),
    "bins": lambda p, y, **where: calibration.calibration_bins(p, y, **where).confidence.sum(),
}


@pytest.mark.fault(
    "Labels that are no class, numbers that are no probabilities, in any measure of calibration",
    "Refused by name and place; NaN under `jit`; left out where `where` says so",
)
@pytest.mark.parametrize("name", MEASURES)
def test_labels_that_are_no_class_are_never_measured(name):
    measure = MEASURES[name]
    where = jnp.array([True, True, False])
    expected = measure(*(x[:2] for x in small()))
    for bad in (-1, -100, 2):
        probabilities, labels = small((0, 1, bad))
        with pytest.raises(
            ValueError, match=rf"labels hold {bad} at \[2\].* 2 classes, 0 to 1.*where"
        ):
            measure(probabilities, labels)
        np.testing.assert_allclose(measure(probabilities, labels, where=where), expected, rtol=1e-5)
    traced = jax.jit(measure)
    assert np.isnan(traced(probabilities, labels))
    np.testing.assert_allclose(traced(probabilities, labels, where=where), expected, rtol=1e-5)
    assert np.isnan(measure(probabilities.at[0].set(jnp.nan), small()[1]))
    with pytest.raises(TypeError, match="labels must be integers, got float32"):
        measure(probabilities, labels.astype(jnp.float32))
    with pytest.raises(TypeError, match="where must be bool"):
        measure(probabilities, labels, where=jnp.ones(3))
    with pytest.raises(ValueError, match=r"where must have shape \(3,\), got \(1,\)"):
        measure(probabilities, labels, where=jnp.ones(1, bool))


@pytest.mark.parametrize("name", ["ece", "adaptive", "brier", "bins"])
def test_logits_are_no_probabilities(name):
    probabilities, labels = small()
    for bad in ([2.0, -1.0], [0.9, 0.9], [0.1, 0.1], [jnp.inf, 0.0]):
        with pytest.raises(ValueError, match=r"probabilities hold \[.*\] at \[1\].*softmax"):
            MEASURES[name](probabilities.at[1].set(jnp.array(bad)), labels)


@pytest.mark.fault(
    "Confidences outside of [0, 1], no bins, or a `where` that is no mask, in `confidence_bins`",
    "Refused by name; left out where `where` says so",
)
def test_confidences_that_are_none_are_never_binned():
    confidence, correct = jnp.array([0.5, 1.5]), jnp.array([True, True])
    where = jnp.array([True, False])
    assert calibration.confidence_bins(confidence, correct, where=where).count.sum() == 1.0
    for counted in (None, ~where):
        with pytest.raises(ValueError, match=r"confidence holds 1.5 at 1; expected numbers in"):
            calibration.confidence_bins(confidence, correct, where=counted)
    for bins in (0, -2, 2.5, True):
        with pytest.raises(ValueError, match=f"bins must be a whole .* of at least 1, got {bins}"):
            calibration.confidence_bins(confidence, correct, bins=bins, where=where)
    with pytest.raises(TypeError, match="where must be bool"):
        calibration.confidence_bins(confidence, correct, where=jnp.array([2, 0]))
    with pytest.raises(ValueError, match=r"where must have shape \(2,\), got \(1,\)"):
        calibration.confidence_bins(confidence, correct, where=where[:1])


def test_a_class_that_an_example_cannot_have_counts_for_nothing():
    """-inf, as -1e9, which is as good as none."""
    low = jnp.array([[2.0, 1.0, -1e9], [1.0, 2.0, 0.5], [1.0, 0.0, -1e9], [0.3, 0.2, 0.9]])
    none = jnp.where(low < -1e8, -jnp.inf, low)
    labels = jnp.array([0, 1, 1, 0])
    for function in (calibration.fit_temperature, calibration.negative_log_likelihood):
        np.testing.assert_allclose(function(none, labels), function(low, labels), rtol=1e-5)
    with pytest.raises(ValueError, match="label of example 2 has the logit -inf"):
        calibration.fit_temperature(none, jnp.array([0, 1, 2, 0]))
    left_out = jnp.array([True, True, False, True])
    assert np.isfinite(calibration.fit_temperature(none, jnp.array([0, 1, 2, 0]), where=left_out))


def test_uncertainty_has_no_number_for_nan():
    draws = jnp.array([[0.5, 0.5], [0.4, jnp.nan], [0.6, 0.4]])
    p_value = calibration.equal_means_p_value(draws, 1.0 - draws)
    assert np.isnan(p_value).tolist() == [False, True]
    passes = jnp.array([[[0.9, 0.1]], [[jnp.nan, 0.2]]])
    with pytest.raises(ValueError, match=r"probabilities hold \[nan.*\] at \[1, 0\]"):
        calibration.certain_predictions(passes)
    assert not jax.jit(calibration.certain_predictions)(passes).any()
    with pytest.raises(ValueError, match="significance must lie in"):
        calibration.certain_predictions(jnp.full((2, 1, 2), 0.5), significance=5)
    with pytest.raises(TypeError, match="certain must be bool, got float32"):
        calibration.patch_accuracy_vs_uncertainty(jnp.ones(3, bool), jnp.ones(3))


def test_nan_among_many_predictions_shows():
    probabilities = np.full((5000, 4), 0.25, np.float32)
    probabilities[3, 0] = np.nan
    labels = jnp.zeros(5000, jnp.int32)
    for measure in (calibration.expected_calibration_error, calibration.adaptive_calibration_error):
        assert np.isnan(measure(jnp.asarray(probabilities), labels))


def test_bins_of_halves_are_summed_in_full():
    right = jnp.zeros(70_000, bool)
    found = calibration.confidence_bins(jnp.full(70_000, 0.75, jnp.float16), right)
    assert found.count.sum() == 70_000
    assert found.expected_calibration_error() == 0.75
    with pytest.raises(TypeError, match="correct must be bool"):
        calibration.confidence_bins(jnp.ones(2), jnp.array([3, -1]))
