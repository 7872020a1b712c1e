"""How far a classifier's confidence can be trusted: pure functions."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class CalibrationBins:
    """Sums per confidence bin, to be added over batches and devices.

    Attributes:
      count: examples in the bin.
      confidence: sum of their confidences.
      correct: how many of them were right.
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
      ValueError: for shapes that do not fit together, or fewer than 1 bin.

    Example:
      >>> p = jnp.array([[0.9, 0.1], [0.2, 0.8]])
      >>> calibration_bins(p, jnp.array([0, 0])).count.tolist()[-3:]
      [1.0, 1.0, 0.0]
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities must be [B, C] and labels [B], got {probabilities.shape} and "
            f"{labels.shape}."
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}.")
    probabilities = probabilities.astype(jnp.float32)
    confidence = jnp.max(probabilities, axis=-1)
    correct = (jnp.argmax(probabilities, axis=-1) == labels).astype(jnp.float32)
    index = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    member = jnp.arange(bins)[:, None] == index[None, :]
    if where is not None:
        member &= where[None, :]

    def per_bin(values: Array) -> Array:
        return jnp.sum(jnp.where(member, values[None, :], 0.0), axis=-1)

    return CalibrationBins(
        per_bin(jnp.ones_like(confidence)), per_bin(confidence), per_bin(correct)
    )


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
      ValueError: for shapes that do not fit together, or fewer than 1 bin.

    Example:
      >>> float(expected_calibration_error(jnp.array([[1.0, 0.0]]), jnp.array([0])))
      0.0
    """
    return calibration_bins(
        probabilities, labels, bins=bins, where=where
    ).expected_calibration_error()
