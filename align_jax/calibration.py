"""How far a classifier's confidence can be trusted: pure functions.

In all of them `labels` are the true classes and `where` is True for the examples that count (None
for all). They raise ValueError for shapes that do not fit together, for a label that is no class
(-1 for "none", -100 for "ignore") and for numbers that are no probabilities, unless `where` leaves
the example out; and TypeError for labels that are no integers, or a `where` that is not bool. Under
`jax.jit`, where values cannot be refused, such a label makes the result NaN, and probabilities are
taken as they are. NaN in is NaN out.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from align_jax import numerics
from align_jax.uncertainty import (
    certain_predictions,
    check_probabilities,
    check_where,
    equal_means_p_value,
    patch_accuracy_vs_uncertainty,
)

__all__ = [
    "CalibrationBins",
    "adaptive_calibration_error",
    "brier_score",
    "calibration_bins",
    "certain_predictions",
    "confidence_bins",
    "equal_means_p_value",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "patch_accuracy_vs_uncertainty",
]


@flax.struct.dataclass
class CalibrationBins:
    """Sums per confidence bin, to be added over batches and devices.

    Attributes:
      count: examples in the bin.
      confidence: sum of their confidences.
      correct: how many of them were right.

    Example:
      >>> count, confidence, correct = (jnp.array([0.0, x]) for x in (4.0, 3.2, 3.0))
      >>> bins = CalibrationBins(count, confidence, correct)
      >>> round(bins.expected_calibration_error().item(), 4)
      0.05
    """

    count: Float[Array, "bins"]
    confidence: Float[Array, "bins"]
    correct: Float[Array, "bins"]

    def expected_calibration_error(self) -> Float[Array, ""]:
        """Sum over bins of `count / N * |accuracy - confidence|`, in `[0, 1]`; 0 if empty."""
        gaps = jnp.abs(self.correct - self.confidence)
        return jnp.sum(gaps) / jnp.maximum(jnp.sum(self.count), 1.0)


def calibration_bins(
    probabilities: Float[Array, "B C"],
    labels: Int[Array, "B"],
    *,
    bins: int = 10,
    where: Bool[Array, "B"] | None = None,
) -> CalibrationBins:
    """Sorts predictions into equal-width bins of confidence (Guo et al. 2017, arXiv 1706.04599).

    Args:
      probabilities: predicted class probabilities; the largest is the confidence.
      labels: the true classes.
      bins: how many bins; bin `i` holds the confidences in `(i / bins, (i + 1) / bins]`.
      where: True for the examples that count; None for all.

    Returns:
      Sums per bin.

    Raises:
      ValueError: fewer than 1 bin, or as the module says, like TypeError.

    Example:
      >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8]])
      >>> calibration_bins(p, jnp.array([0, 0])).count.tolist()[-3:]
      [1.0, 1.0, 0.0]
    """
    confidence, correct = _confidence(probabilities, labels, bins, where)
    return confidence_bins(confidence, correct, bins=bins, where=where)


def confidence_bins(
    confidence: Float[Array, "B"],
    correct: Bool[Array, "B"],
    *,
    bins: int = 10,
    where: Bool[Array, "B"] | None = None,
) -> CalibrationBins:
    """As `calibration_bins`, for predictions that are no choice among exclusive classes.

    Args:
      confidence: of each prediction, in `[0, 1]`, such as the largest of several sigmoids.
      correct: whether it was right.
      bins: how many.
      where: True for the examples that count; None for all.

    Returns:
      Sums per bin.

    Raises:
      ValueError: shapes that do not fit together, fewer than 1 bin, or a confidence outside of
        `[0, 1]`, unless `where` leaves it out.
      TypeError: a `correct` or `where` that is not bool.

    Example:
      >>> confidence_bins(jnp.array([0.85, 0.3]), jnp.array([True, False])).correct.tolist()[-2:]
      [1.0, 0.0]
    """
    for name, x in (("confidence", confidence), ("correct", correct)):
        if not hasattr(x, "ndim"):
            raise TypeError(f"{name} must be an array, got a {type(x).__name__}: use np.asarray.")
    if correct.dtype != jnp.bool_:
        raise TypeError(f"correct must be bool (True = right), got {correct.dtype}.")
    if confidence.ndim != 1 or correct.shape != confidence.shape:
        raise ValueError(
            f"confidence and correct must be [B], got {confidence.shape} and {correct.shape}."
        )
    _check_bins(bins)
    check_where(where, confidence.shape)
    wrong = numerics.first_wrong(confidence, lambda x: (x < 0) | (x > 1), where)
    if wrong is not None:
        shown = f"{np.asarray(confidence)[wrong]} at {wrong[0]}"
        raise ValueError(f"confidence holds {shown}; expected numbers in [0, 1].")
    # In halves, a sum over many examples would lose the last ones.
    confidence, correct = confidence.astype(jnp.float32), correct.astype(jnp.float32)
    # A NaN goes into a bin, where it shows.
    index = jnp.ceil(jnp.nan_to_num(confidence) * bins).astype(jnp.int32) - 1
    index = jnp.clip(index, 0, bins - 1)
    member = jnp.arange(bins)[:, None] == index[None, :]
    if where is not None:
        member &= where[None, :]
    values = jnp.ones_like(confidence), confidence, correct
    return CalibrationBins(*(jnp.sum(jnp.where(member, x[None, :], 0.0), axis=-1) for x in values))


def expected_calibration_error(
    probabilities: Float[Array, "B C"],
    labels: Int[Array, "B"],
    *,
    bins: int = 10,
    where: Bool[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """ECE: how far, on average, confidence lies from accuracy (Guo et al. 2017, Eq. 3).

    Args:
      probabilities: predicted class probabilities.
      labels: the true classes.
      bins: number of equal-width bins; the paper has 10.
      where: True for the examples that count; None for all.

    Returns:
      A scalar in `[0, 1]`; tables print it in percent.

    Raises:
      ValueError: fewer than 1 bin, or as the module says, like TypeError.

    Example:
      >>> float(expected_calibration_error(jnp.array([[1.0, 0.0]]), jnp.array([0])))
      0.0
    """
    found = calibration_bins(probabilities, labels, bins=bins, where=where)
    return found.expected_calibration_error()


def adaptive_calibration_error(
    probabilities: Float[Array, "B C"],
    labels: Int[Array, "B"],
    *,
    bins: int = 10,
    where: Bool[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """As the ECE, with bins that hold equally many examples (Nixon et al. 2019, arXiv 1904.01685).

    Where most confidences lie close together, bins of equal width put nearly all examples into one,
    within which too high and too low confidences cancel; bins of equal mass do not.

    Args:
      probabilities: predicted class probabilities; the largest is the confidence.
      labels: the true classes.
      bins: how many; where the examples do not divide evenly, the bins of the lowest confidences
        hold one more.
      where: True for the examples that count; None for all.

    Returns:
      A scalar in `[0, 1]`; 0 if no example counts.

    Raises:
      ValueError: fewer than 1 bin, or as the module says, like TypeError.

    Example:
      >>> p = jnp.array([[0.6, 0.4], [0.7, 0.3]])
      >>> round(float(adaptive_calibration_error(p, jnp.array([0, 1]), bins=2)), 4)
      0.55
    """
    confidence, correct = _confidence(probabilities, labels, bins, where)
    where = jnp.ones(labels.shape, bool) if where is None else where
    rank = jnp.argsort(jnp.argsort(jnp.where(where, confidence, jnp.inf)))
    count = jnp.sum(where)
    size, larger = jnp.divmod(count, bins)
    of_larger = larger * (size + 1)
    index = jnp.where(
        rank < of_larger,
        rank // (size + 1),
        larger + (rank - of_larger) // jnp.maximum(size, 1),
    )
    gaps = jnp.where(where, correct.astype(jnp.float32) - confidence, 0.0)
    per_bin = jnp.zeros(bins, jnp.float32).at[jnp.clip(index, 0, bins - 1)].add(gaps)
    return jnp.sum(jnp.abs(per_bin)) / jnp.maximum(count, 1).astype(jnp.float32)


def negative_log_likelihood(
    logits: Float[Array, "B C"], labels: Int[Array, "B"], *, where: Bool[Array, "B"] | None = None
) -> Float[Array, ""]:
    """The mean negative log-probability of the true classes, in nats.

    Args:
      logits: unnormalised log-probabilities; -inf for a class that an example cannot have.
      labels: the true classes.
      where: True for the examples that count; None for all.

    Returns:
      A scalar; nan if no example counts.

    Example:
      >>> round(float(negative_log_likelihood(jnp.zeros((1, 2)), jnp.array([0]))), 4)
      0.6931
    """
    _check_pair("logits", logits, labels, where)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    true = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1, mode="clip")[:, 0]
    return -jnp.mean(_known(true, logits, labels), where=where)


def brier_score(
    probabilities: Float[Array, "B C"],
    labels: Int[Array, "B"],
    *,
    where: Bool[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """The mean squared distance between probabilities and the truth (Brier 1950).

    Args:
      probabilities: predicted class probabilities.
      labels: the true classes.
      where: True for the examples that count; None for all.

    Returns:
      A scalar in `[0, 2]`, summed over the classes; nan if no example counts.

    Example:
      >>> float(brier_score(jnp.array([[0.5, 0.5]]), jnp.array([1])))
      0.5
    """
    _check_pair("probabilities", probabilities, labels, where)
    check_probabilities(probabilities, where)
    truth = jax.nn.one_hot(labels, probabilities.shape[-1], dtype=jnp.float32)
    squares = jnp.sum(jnp.square(probabilities.astype(jnp.float32) - truth), axis=-1)
    return jnp.mean(_known(squares, probabilities, labels), where=where)


def fit_temperature(
    logits: Float[Array, "B C"], labels: Int[Array, "B"], *, where: Bool[Array, "B"] | None = None
) -> Float[Array, ""]:
    """The temperature that best calibrates held-out predictions (Guo et al. 2017, section 4.2).

    Dividing logits by it minimises their negative log-likelihood and changes no prediction. That is
    convex in the inverse temperature, so that bisection of its slope finds the one minimum.

    Args:
      logits: of held-out examples, not those that are then reported on; -inf for a class that an
        example cannot have.
      labels: their true classes.
      where: True for the examples that count; None for all.

    Returns:
      A scalar in `[0.01, 100]`; an end of it where every prediction is right, or none is better
      than chance, 1 where all temperatures are alike, and nan where no example counts.

    Raises:
      ValueError: a label whose logit is -inf, which no temperature makes possible, or as the module
        says, like TypeError.

    Example:
      >>> logits = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
      >>> temperature = fit_temperature(logits, jnp.array([0, 0, 0, 1]))
      >>> round(float(jax.nn.softmax(logits / temperature)[0, 0]), 3)
      0.75
    """
    _check_pair("logits", logits, labels, where)
    logits = logits.astype(jnp.float32)
    true = jnp.take_along_axis(logits, labels[:, None], axis=-1, mode="clip")[:, 0]
    true = _known(true, logits, labels)
    impossible = numerics.first_wrong(true, np.isneginf, where)
    if impossible is not None:
        raise ValueError(
            f"the label of example {impossible[0]} has the logit -inf, which no temperature makes "
            f"possible. Leave it out by `where`, or correct the label or the mask of the classes."
        )
    possible = logits > -jnp.inf
    finite = jnp.where(possible | jnp.isnan(logits), logits, 0.0)

    def slope(inverse: Array) -> Array:
        # A class of -inf has no part in the mean, where it would be 0 times infinity.
        probabilities = jax.nn.softmax(finite * inverse, where=possible | jnp.isnan(logits))
        return jnp.mean(jnp.sum(probabilities * finite, axis=-1) - true, where=where)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        too_high = slope(jnp.exp(middle)) > 0.0
        return jnp.where(too_high, low, middle), jnp.where(too_high, middle, high)

    reach = jnp.log(jnp.float32(100.0))
    low, high = jax.lax.fori_loop(0, 40, halve, (-reach, reach))
    at_one = slope(jnp.ones((), jnp.float32))  # nan, the mean of nothing, where no example counts
    found = jnp.where(at_one == 0.0, 1.0, jnp.exp(-(low + high) / 2))
    return jnp.where(jnp.isnan(at_one), jnp.nan, found)


def _known(values: Array, predictions: Array, labels: Array) -> Array:
    """One value per example; NaN where its label is no class, as a traced one may be."""
    known = (labels >= 0) & (labels < predictions.shape[-1])
    return jnp.where(known, values, jnp.nan)


def _check_pair(name: str, predictions: Array, labels: Array, where: Array | None) -> None:
    for what, x in ((name, predictions), ("labels", labels)):
        if not hasattr(x, "ndim"):
            raise TypeError(f"{what} must be an array, got a {type(x).__name__}: use np.asarray.")
    if predictions.ndim != 2 or labels.shape != predictions.shape[:1]:
        raise ValueError(
            f"{name} must be [B, C] and labels [B], got {predictions.shape} and {labels.shape}."
        )
    check_where(where, labels.shape)
    numerics.check_indices(
        "labels", labels, predictions.shape[-1], "classes", where,
        advice="Examples without a label are left out by `where`: where=labels >= 0.",
    )  # fmt: skip


def _confidence(
    probabilities: Array, labels: Array, bins: int, where: Array | None
) -> tuple[Array, Array]:
    """The confidence of each prediction, and whether it is right; checks all there is."""
    _check_bins(bins)
    _check_pair("probabilities", probabilities, labels, where)
    check_probabilities(probabilities, where)
    probabilities = probabilities.astype(jnp.float32)
    largest = jnp.max(probabilities, axis=-1)  # over many rows, XLA's on a CPU forgets NaN
    largest = jnp.where(jnp.any(jnp.isnan(probabilities), axis=-1), jnp.nan, largest)
    confidence = _known(largest, probabilities, labels)
    return confidence, jnp.argmax(probabilities, axis=-1) == labels


def _check_bins(bins: int) -> None:
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(f"bins must be a whole number of at least 1, got {bins!r}.")
