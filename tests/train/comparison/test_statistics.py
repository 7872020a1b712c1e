"""Differences between methods, against scipy's own tests and made-up seeds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from train.comparison.statistics import (
    LEAST_FOR_BOOTSTRAP,
    detectable_difference,
    differences_to_plain,
    holm,
    noise,
    paired_difference,
    paired_t_test,
)


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
    # Two seeds may differ from plain by as much by chance, eight hardly.
    assert found.within_noise == (count == 2)
    assert paired_difference([0.5] * count, [0.5] * count).within_noise


@pytest.mark.parametrize("count", [3, LEAST_FOR_BOOTSTRAP])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_finite_number_is_never_more_than_noise(count, wrong) -> None:
    values = [0.1, wrong, 0.3, *range(5)][:count]
    found = paired_difference(values, [0.0] * count)
    assert found.within_noise
    assert found.p_value is None
    assert found.sentence("ct", "nll").endswith("over plain: not every value is a finite number.")
    (said,) = noise({("ct", "nll"): found})
    assert said.startswith("Nothing is told from noise: of each difference a value is no finite")
    other = paired_difference([0.1, -0.1, 0.0], [0.0] * 3)
    assert "No difference is beyond noise" in noise({("ct", "nll"): found, ("ct", "f1"): other})[0]


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
    found = differences_to_plain(values)
    ct, gan = (one.sentence(*name) for name, one in found.items())
    assert ct.startswith("ct, test accuracy: +0.1000 over plain, 95% interval [+0.0752, +0.1248]")
    assert ct.endswith("(Student's t, 3 paired seeds): more than noise.")
    assert gan.endswith("within noise.")
    assert differences_to_plain({"ct": values["ct"]}) == {}
    (said,) = noise(found)
    assert said.startswith("More than noise: ct, test accuracy +0.1000 [+0.0752, +0.1248] (95% ")
    (said,) = noise({name: one for name, one in found.items() if "gan" in name})
    assert said.startswith("No difference is beyond noise (95% intervals")
    assert noise({}) == []


def test_seeds_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="must pair up by seed; got 2 and 1 of them"):
        paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize("count", [2, 30])
def test_the_named_test_is_scipys_paired_t_test_of_any_number_of_pairs(rng, count) -> None:
    values, base = rng.normal(size=(2, count))
    found, expected = paired_t_test(values, base), scipy.stats.ttest_rel(values, base)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert "sign flips" not in found.sentence("ct", "accuracy")


def test_the_test_says_nothing_of_equal_differences_or_one() -> None:
    assert paired_t_test([2.0, 3.0], [1.0, 2.0]).p_value is None
    assert paired_t_test([2.0, 3.0], [2.0, 3.0]).p_value is None
    assert paired_t_test([2.0], [1.0]).p_value is None


def test_holm_is_that_of_r() -> None:
    """p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.005), "holm"), and by hand for ties and the cap."""
    adjusted = holm([0.01, 0.02, 0.03, 0.04, 0.005])
    assert adjusted == pytest.approx([0.04, 0.06, 0.06, 0.06, 0.025])
    assert holm([0.02, 0.9, 0.02]) == pytest.approx([0.06, 0.9, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_one_false_finding(rng) -> None:
    """20 tests of nothing at 5 %: of 400 studies 20 are expected to find something, not 256."""
    false = sum(min(holm(rng.uniform(size=20).tolist())) <= 0.05 for _ in range(400))
    assert 5 <= false <= 40


@pytest.mark.parametrize("p_values", [[0.1, 1.5], [-0.1], [float("nan")]])
def test_what_is_no_p_value_is_refused(p_values) -> None:
    with pytest.raises(ValueError, match=r"expected numbers in \[0, 1\]"):
        holm(p_values)


@pytest.mark.parametrize(
    ("pairs", "power", "significance"),
    [(2, 0.8, 0.05), (10, 0.8, 0.05), (34, 0.8, 0.05), (20, 0.9, 0.05 / 36), (200, 0.5, 0.01)],
)
def test_the_detectable_difference_is_found_that_often(rng, pairs, power, significance) -> None:
    """Of 20,000 made-up experiments with that mean difference, scipy's test finds the share."""
    shift = detectable_difference(2.0, pairs, power, significance)
    differences = rng.normal(shift, 2.0, size=(20_000, pairs))
    found = scipy.stats.ttest_1samp(differences, 0.0, axis=1).pvalue < significance
    assert found.mean() == pytest.approx(power, abs=0.015)


def test_the_detectable_difference_is_that_of_the_textbooks() -> None:
    """Half a standard deviation takes 34 pairs (33.4; Cohen 1988), and many pairs the normal."""
    assert detectable_difference(1.0, 33) > 0.5 > detectable_difference(1.0, 34)
    assert detectable_difference(1.0, 10**6) == pytest.approx(2.8016e-3, rel=1e-3)
    assert detectable_difference(0.0, 5) == 0.0
    # Where the power is all of that little tail, nothing but scipy's own limits ends the search.
    assert 1e9 < detectable_difference(1.0, 2, significance=1e-12) < 1e13


@pytest.mark.parametrize(
    "settings",
    [{"pairs": 1}, {"spread": -1.0}, {"spread": float("nan")}, {"power": 0.01}, {"power": 1.0}],
)
def test_an_impossible_power_is_refused(settings) -> None:
    with pytest.raises(ValueError, match="expected spread >= 0, pairs >= 2"):
        detectable_difference(**{"spread": 1.0, "pairs": 10, **settings})
