"""Differences between methods, against scipy's own tests and made-up seeds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from train.comparison.statistics import LEAST_FOR_BOOTSTRAP, findings, paired_difference


def test_few_seeds_have_the_interval_of_the_paired_t_test(rng) -> None:
    values, base = rng.normal(size=(2, 5))
    found = paired_difference(values, base)
    interval = scipy.stats.ttest_rel(values, base).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.mean == pytest.approx(np.mean(values - base))
    assert (found.interval, found.pairs) == ("Student's t", 5)


def test_pairing_removes_what_the_seeds_have_in_common(rng) -> None:
    """A gain of 0.1 among seeds that differ by 10 is found, because each has its own baseline."""
    base = rng.normal(scale=10, size=6)
    gain = 0.1 + rng.normal(scale=0.01, size=6)
    found = paired_difference(base + gain, base)
    assert not found.within_noise
    assert found.low < 0.1 < found.high
    assert scipy.stats.ttest_ind(base + gain, base).pvalue > 0.9


def test_many_seeds_are_resampled_and_the_interval_covers_the_truth(rng) -> None:
    """Of 60 experiments with 20 seeds each, the 95 % intervals miss the true mean a few times."""
    covered = 0
    for _ in range(60):
        found = paired_difference(rng.exponential(size=20), np.zeros(20))
        assert found.interval == "bootstrap"
        covered += found.low < 1.0 < found.high
    assert 48 <= covered <= 60


@pytest.mark.parametrize("differing", [1, 2, 5, 6])
def test_few_differing_pairs_among_many_need_the_exact_test(differing) -> None:
    """The bootstrap's interval leaves 0 out for 5 of 200, the sign test does not."""
    values = [1.0] * differing + [0.0] * (200 - differing)
    found = paired_difference(values, [0.0] * 200, unit="example")
    assert found.low >= 0
    assert found.p_value == pytest.approx(scipy.stats.binomtest(differing, differing).pvalue)
    assert found.within_noise == (differing < 6)
    assert f"sign flips p = {found.p_value:.2g}, 200 paired examples" in found.sentence("ct", "x")


def test_equal_methods_that_differ_on_few_examples_raise_few_alarms(rng) -> None:
    """95 % confidence: of 60 comparisons of equals, three false alarms are expected, nine rare."""
    alarms = 0
    for _ in range(60):
        values = rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.96, 0.02], size=200)
        alarms += not paired_difference(values, np.zeros(200)).within_noise
    assert alarms < 9


@pytest.mark.parametrize("count", [2, LEAST_FOR_BOOTSTRAP])
def test_equal_differences_need_no_resampling(count) -> None:
    found = paired_difference([0.6] * count, [0.5] * count)
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert not found.within_noise
    assert paired_difference([0.5] * count, [0.5] * count).within_noise


def test_one_seed_tells_nothing() -> None:
    found = paired_difference([0.9], [0.8])
    assert found.within_noise
    assert found.sentence("ct", "accuracy") == (
        "ct, accuracy: +0.1000 over plain with one seed, which tells nothing about noise."
    )


def test_sentences_compare_every_method_with_the_plain_model() -> None:
    values = {
        "none": {"test accuracy": [0.8, 0.7, 0.9]},
        "ct": {"test accuracy": [0.9, 0.81, 0.99]},
        "gan": {"test accuracy": [0.7, 0.8, 0.9]},
    }
    ct, gan = findings(values)
    assert ct.startswith("ct, test accuracy: +0.1000 over plain, 95% interval [+0.0752, +0.1248]")
    assert ct.endswith("(Student's t, 3 paired seeds): more than noise.")
    assert gan.endswith("within noise.")
    assert findings({"ct": values["ct"]}) == []


def test_seeds_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="must pair up by seed; got 2 and 1 of them"):
        paired_difference([1.0, 2.0], [1.0])
