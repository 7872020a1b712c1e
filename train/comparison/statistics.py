"""Is a difference between two methods more than the difference between seeds?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from align_jax.config import PLAIN

CONFIDENCE = 0.95
# With fewer, resampling a handful of differences gives intervals that are too narrow (of three, a
# ninth of the resamples hold one value alone).
LEAST_FOR_BOOTSTRAP = 8
NO_SPREAD = "no spread"  # in place of an interval's name: all differences are the same
RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much a method gains over another, in pairs."""

    mean: float  # of the differences
    low: float | None  # confidence interval of that mean; None for one pair, NaN or infinity
    high: float | None
    pairs: int
    interval: str  # how it was found
    unit: str  # what a pair shares, "seed" or "example"
    # Of `paired_t_test`; or of the sign-flip permutation test (Fisher 1935), beside a bootstrap
    # interval, which is too narrow where few pairs differ at all.
    p_value: float | None = None

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds 0, or there is none, or the test finds nothing."""
        chance = self.interval == NO_SPREAD and self.pairs < LEAST_FOR_BOOTSTRAP
        if chance or (self.p_value is not None and self.p_value > 1.0 - CONFIDENCE):
            return True
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high

    @property
    def gain(self) -> str:
        """Mean and verdict in plain words."""
        if self.pairs == 1:
            pair = f"one {self.unit}, which tells nothing about noise"
            return f"{self.mean:+.4f} over plain with {pair}"
        if self.low is None:
            return f"{self.mean:+.4f} over plain: not every value is a finite number"
        verdict = "within noise" if self.within_noise else "more than noise"
        return f"{self.mean:+.4f} over plain: {verdict}"

    def sentence(self, method: str, metric: str) -> str:
        """The finding in plain words."""
        if self.low is None or self.high is None:
            return f"{method}, {metric}: {self.gain}."
        start, verdict = self.gain.split(": ")
        by = "sign flips " if self.interval == "bootstrap" else ""
        test = "" if self.p_value is None else f", {by}p = {self.p_value:.2g}"
        return (
            f"{method}, {metric}: {start}, {CONFIDENCE:.0%} interval [{self.low:+.4f}, "
            f"{self.high:+.4f}] ({self.interval}{test}, {self.pairs} paired {self.unit}s): "
            f"{verdict}."
        )


def paired_t_test(values: Sequence[float], base: Sequence[float], unit: str = "seed") -> Difference:
    """The mean difference with Student's interval and p-value, of however many pairs.

    Without any spread there is no p-value. This test is for a study that names it before it is run;
    `paired_difference` chooses one by the number of pairs.

    Args:
        values: one method's, by what the pairs share.
        base: the other's, in the same order.
        unit: what a pair shares.

    Raises:
        ValueError: they are not of one length, or empty.

    Example:
        >>> found = paired_t_test([0.9, 0.8, 0.7], [0.7, 0.7, 0.7])
        >>> round(found.mean, 3), round(found.p_value, 3)
        (0.1, 0.225)
    """
    if len(values) != len(base) or not len(values):
        raise ValueError(
            f"values and base must pair up by {unit}; got {len(values)} and {len(base)} of them."
        )
    import scipy.stats

    differences = np.asarray(values, np.float64) - np.asarray(base, np.float64)
    mean, count = float(differences.mean()), len(differences)
    if count == 1 or not np.isfinite(differences).all():
        return Difference(mean, None, None, count, "", unit)
    if np.ptp(differences) <= 1e-12 * max(1.0, abs(mean)):  # nothing to divide by, or to resample
        return Difference(mean, mean, mean, count, NO_SPREAD, unit)
    test = scipy.stats.ttest_1samp(differences, 0.0)
    low, high = map(float, test.confidence_interval(CONFIDENCE))
    return Difference(mean, low, high, count, "Student's t", unit, float(test.pvalue))


def paired_difference(
    values: Sequence[float], base: Sequence[float], unit: str = "seed"
) -> Difference:
    """The mean difference of two methods that ran with the same seeds, or on the same examples.

    The interval is BCa bootstrap's (Efron 1987) where there are pairs enough to resample, with a
    sign-flip test beside it; Student's t before that. Arguments and errors as of `paired_t_test`.

    Example:
        >>> round(paired_difference([0.9, 0.8], [0.8, 0.75]).mean, 3)
        0.075
    """
    found = paired_t_test(values, base, unit)
    if found.pairs < LEAST_FOR_BOOTSTRAP or found.interval != "Student's t":
        return dataclasses.replace(found, p_value=None)  # the interval says it all
    import scipy.stats

    differences = np.asarray(values, np.float64) - np.asarray(base, np.float64)
    rng = np.random.default_rng(0)
    interval = scipy.stats.bootstrap(
        (differences,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, rng=rng
    ).confidence_interval  # BCa
    # Flipping a zero changes nothing; without zeros, few differences are flipped in every way. One
    # is put back, because scipy refuses a single difference.
    flipped = np.append(differences[differences != 0], 0.0)
    test = scipy.stats.permutation_test(
        (flipped,), np.sum, permutation_type="samples", n_resamples=RESAMPLES, rng=rng
    )
    low, high, p_value = float(interval.low), float(interval.high), float(test.pvalue)
    return Difference(found.mean, low, high, found.pairs, "bootstrap", unit, p_value)


def differences_to_plain(
    values: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[tuple[str, str], Difference]:
    """The gain of each method over the plain model, by method and metric; none without that model.

    `values` are method -> metric -> its value for each seed.
    """
    base = values.get(PLAIN)
    return {
        (method, metric): paired_difference(of_seeds, base[metric])
        for method, metrics in values.items()
        if base and method != PLAIN
        for metric, of_seeds in metrics.items()
    }


def noise(found: Mapping[tuple[str, str], Difference]) -> list[str]:
    """Which differences are more than noise, in one sentence; none where nothing was compared.

    Example:
        >>> print(*noise(differences_to_plain({"none": {"f1": [0.5]}, "ct": {"f1": [0.7]}})))
        One seed says nothing about noise; train.sweep runs three with --seeds=0,1,2.
    """
    known = {name: one for name, one in found.items() if one.low is not None}
    if not known and any(one.pairs > 1 for one in found.values()):
        return ["Nothing is told from noise: of each difference a value is no finite number."]
    if not known:
        ways = "One seed says nothing about noise; train.sweep runs three with --seeds=0,1,2."
        return [ways] if found else []
    beyond = [
        f"{method}, {metric} {one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
        for (method, metric), one in known.items()
        if not one.within_noise
    ]
    start = f"More than noise: {'; '.join(beyond)}" if beyond else "No difference is beyond noise"
    basis = f"{CONFIDENCE:.0%} intervals, paired by seed, not adjusted for {len(known)} comparisons"
    return [f"{start} ({basis})."]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being many (Holm 1979): all of them at most alpha are found together.

    Whatever the tests have in common, the chance of one false finding among them stays below alpha.

    Args:
        p_values: of each test, in [0, 1].

    Returns:
        The adjusted ones, in the same order.

    Raises:
        ValueError: one is not in [0, 1].

    Example:
        >>> holm([0.25, 0.125, 0.5])
        [0.5, 0.375, 0.5]
    """
    given = np.asarray(p_values, np.float64)
    if not ((given >= 0.0) & (given <= 1.0)).all():
        raise ValueError(f"p_values are {given.tolist()}; expected numbers in [0, 1].")
    order = np.argsort(given, kind="stable")
    stepped = given[order] * np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted.tolist()


def detectable_difference(
    spread: float, pairs: int, power: float = 0.8, significance: float = 1.0 - CONFIDENCE
) -> float:
    """The mean difference that a two-sided paired t-test finds with the given power.

    Args:
        spread: standard deviation of the differences between pairs. Of two methods that each vary
            by s and have nothing in common it is s times the root of 2, of paired ones less.
        pairs: their number.
        power: the chance to find it.
        significance: the chance to find a difference where there is none.

    Raises:
        ValueError: the spread is negative, there are fewer than two pairs, or `significance` is not
            in (0, 1) and `power` not between it and 1.

    Example:
        >>> round(detectable_difference(spread=1.0, pairs=34), 3)
        0.495
    """
    if not spread >= 0.0 or pairs < 2 or not 0.0 < significance < power < 1.0:
        raise ValueError(
            f"spread is {spread}, pairs {pairs}, power {power} and significance {significance}; "
            f"expected spread >= 0, pairs >= 2 and 0 < significance < power < 1."
        )
    return _detectable_shift(pairs, power, significance) * spread / pairs**0.5


@functools.cache  # a study asks for the same few again and again
def _detectable_shift(pairs: int, power: float, significance: float) -> float:
    """The mean that is found, in units of its standard error."""
    import scipy.optimize
    import scipy.stats

    # Given the spread that is estimated, the test is one of a normal mean; its power is the mean
    # over that spread. (scipy's noncentral t is NaN for few pairs.)
    freedom, shares = pairs - 1, (np.arange(10_000) + 0.5) / 10_000
    limit = scipy.stats.t.isf(significance / 2, freedom)
    limits = limit * np.sqrt(scipy.stats.chi2.ppf(shares, freedom) / freedom)

    def missing(shift: float) -> float:
        above, below = scipy.stats.norm.sf(limits - shift), scipy.stats.norm.cdf(-limits - shift)
        return float((above + below).mean() - power)

    return float(scipy.optimize.brentq(missing, 0.0, 100.0 + 10.0 * limit))
