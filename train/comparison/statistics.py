"""Is a difference between two methods more than the difference between seeds?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from align_jax.config import PLAIN

CONFIDENCE = 0.95
# With fewer, resampling a handful of differences gives intervals that are too narrow (of three, a
# ninth of the resamples hold one value alone).
LEAST_FOR_BOOTSTRAP = 8
RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much a method gains over another, in pairs.

    Attributes:
        mean: of the differences.
        low, high: confidence interval of that mean; None for a single pair.
        pairs: their number.
        interval: how the interval was found.
        unit: what a pair shares, "seed" or "example".
        p_value: of the sign-flip permutation test (Fisher 1935), beside a bootstrap interval, which
            is too narrow where few pairs differ at all.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    interval: str
    unit: str
    p_value: float | None = None

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds 0, or there is none, or the test finds nothing."""
        if self.p_value is not None and self.p_value > 1.0 - CONFIDENCE:
            return True
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high

    def sentence(self, method: str, metric: str) -> str:
        """The finding in plain words."""
        start = f"{method}, {metric}: {self.mean:+.4f} over plain"
        if self.low is None or self.high is None:
            return f"{start} with one {self.unit}, which tells nothing about noise."
        verdict = "within noise" if self.within_noise else "more than noise"
        test = "" if self.p_value is None else f", sign flips p = {self.p_value:.2g}"
        return (
            f"{start}, {CONFIDENCE:.0%} interval [{self.low:+.4f}, {self.high:+.4f}] "
            f"({self.interval}{test}, {self.pairs} paired {self.unit}s): {verdict}."
        )


def paired_difference(
    values: Sequence[float], base: Sequence[float], unit: str = "seed"
) -> Difference:
    """The mean difference of two methods that ran with the same seeds, or on the same examples.

    The interval is BCa bootstrap's (Efron 1987) where there are pairs enough to resample, with a
    sign-flip test beside it; Student's t before that.

    Args:
        values: one method's, by what the pairs share.
        base: the other's, in the same order.
        unit: what a pair shares.

    Raises:
        ValueError: they are not of one length, or empty.

    Example:
        >>> round(paired_difference([0.9, 0.8], [0.8, 0.75]).mean, 3)
        0.075
    """
    if len(values) != len(base) or not len(values):
        raise ValueError(
            f"values and base must pair up by {unit}; got {len(values)} and {len(base)} of them."
        )
    import scipy.stats

    differences = np.asarray(values, np.float64) - np.asarray(base, np.float64)
    mean, count = float(differences.mean()), len(differences)
    spread = float(np.ptp(differences))
    if count == 1:
        return Difference(mean, None, None, count, "", unit)
    if spread <= 1e-12 * max(1.0, abs(mean)):  # nothing to resample or to divide by
        return Difference(mean, mean, mean, count, "no spread", unit)
    if count < LEAST_FOR_BOOTSTRAP:
        error = scipy.stats.sem(differences)
        low, high = scipy.stats.t.interval(CONFIDENCE, count - 1, loc=mean, scale=error)
        return Difference(mean, float(low), float(high), count, "Student's t", unit)
    rng = np.random.default_rng(0)
    found = scipy.stats.bootstrap(
        (differences,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="BCa",
        rng=rng,
    ).confidence_interval  # fmt: skip
    # Flipping a zero changes nothing; without zeros, few differences are flipped in every way. One
    # is put back, because scipy refuses a single difference.
    flipped = np.append(differences[differences != 0], 0.0)
    test = scipy.stats.permutation_test(
        (flipped,), np.sum, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES,
        rng=rng,
    )  # fmt: skip
    low, high, p_value = float(found.low), float(found.high), float(test.pvalue)
    return Difference(mean, low, high, count, "bootstrap", unit, p_value)


def findings(values: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """A sentence per method and metric, against the plain model's.

    Args:
        values: method -> metric -> its value for each seed; without a plain model nothing can be
            said.
    """
    base = values.get(PLAIN, {})
    return [
        paired_difference(of_seeds, base[metric]).sentence(method, metric)
        for method, metrics in values.items()
        if base and method != PLAIN
        for metric, of_seeds in metrics.items()
    ]
