"""How sure a classifier is by its stochastic passes; offered as part of `align_jax.calibration`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc
from jaxtyping import Array, Bool, Float

from align_jax import numerics

# How far the probabilities of an example may add up to something else than 1: float16's rounding.
_SUM_TOLERANCE = 0.02


def equal_means_p_value(
    first: Float[Array, "S B"], second: Float[Array, "S B"]
) -> Float[Array, "B"]:
    """Two-sided p-value of Welch's t-test that two samples come from equal means.

    As `scipy.stats.ttest_ind(equal_var=False)`: nothing makes the two variances equal.

    Args:
      first: S draws for each of B cases.
      second: likewise.

    Returns:
      p-values in `[0, 1]`. Where neither sample varies at all, 1 for equal means and else 0; NaN
      where a draw is NaN or infinite.

    Raises:
      ValueError: the shapes differ, or there are fewer than 2 draws.

    Example:
      >>> p = equal_means_p_value(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [2.0]]))
      >>> p.tolist()
      [1.0]
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[0] < 2:
        raise ValueError(
            f"Expected two samples [S, B] of one shape with S >= 2, got {first.shape} and "
            f"{second.shape}."
        )
    draws = first.shape[0]
    # Of a mean that is large beside the spread, float32 would hold few digits of the gap.
    origin = first[:1].astype(jnp.float32)
    first, second = (x.astype(jnp.float32) - origin for x in (first, second))
    gap = jnp.mean(first, axis=0) - jnp.mean(second, axis=0)
    # Of the mean, each; unbiased.
    variances = jnp.stack([jnp.var(x, axis=0, ddof=1) / draws for x in (first, second)])
    total = jnp.sum(variances, axis=0)
    varies = ~(total <= 0.0)  # True of NaN, which must not become a p-value
    safe = jnp.where(varies, total, 1.0)
    squares = jnp.sum(jnp.square(variances / safe[None]), axis=0)
    freedom = (draws - 1) / jnp.where(varies, squares, 1.0)
    # Student's distribution function by the incomplete beta function (Abramowitz & Stegun 26.5.27).
    # Each of its two forms keeps its digits where the other's argument is rounded to 1.
    squared = jnp.square(gap) / safe
    tail = betainc(freedom / 2, 0.5, freedom / (freedom + squared))
    centre = 1.0 - betainc(0.5, freedom / 2, squared / (freedom + squared))
    p_value = jnp.where(squared < 1.0, centre, tail)
    return jnp.where(varies, p_value, (gap == 0.0).astype(jnp.float32))


def certain_predictions(
    probabilities: Float[Array, "S B C"], *, significance: float = 0.05
) -> Bool[Array, "B"]:
    """Whether stochastic forward passes agree on an answer (Fan et al. 2020, arXiv 2010.10604).

    The answer is that of the highest mean probability. It is certain if its probabilities differ
    from those of the second answer by `equal_means_p_value`.

    Args:
      probabilities: of C classes for B examples in each of S passes with dropout; the paper has 20.
      significance: the p-value below which an answer is certain.

    Returns:
      True where certain; under `jax.jit` False where a probability is NaN.

    Raises:
      ValueError: fewer than 2 passes or classes, numbers that are no probabilities (unless
        traced), or a significance outside `[0, 1]`.

    Example:
      >>> passes = jnp.array([[[0.9, 0.1]], [[0.8, 0.2]]])
      >>> certain_predictions(passes).tolist()
      [True]
    """
    if probabilities.ndim != 3 or probabilities.shape[0] < 2 or probabilities.shape[2] < 2:
        raise ValueError(
            f"probabilities must be [S, B, C] with 2 passes and 2 classes at least, got "
            f"{probabilities.shape}."
        )
    numerics.check_fraction("significance", significance)
    check_probabilities(probabilities, finite=True)
    _, top = jax.lax.top_k(jnp.mean(probabilities, axis=0), 2)
    both = jnp.take_along_axis(probabilities, top[None], axis=2)
    return equal_means_p_value(both[..., 0], both[..., 1]) < significance


def patch_accuracy_vs_uncertainty(
    correct: Bool[Array, "B"], certain: Bool[Array, "B"], *, where: Bool[Array, "B"] | None = None
) -> Float[Array, ""]:
    """PAvPU: the share of examples that are right and certain, or wrong and uncertain.

    Source: Mukhoti & Gal 2018 (arXiv 1811.12709), Eq. 3, with whole examples as patches.

    Args:
      correct: whether each prediction is right.
      certain: whether it is certain, see `certain_predictions`.
      where: True for the examples that count; None for all.

    Returns:
      A scalar in `[0, 1]`; nan if no example counts.

    Raises:
      ValueError: the shapes differ.
      TypeError: an array that is not bool.

    Example:
      >>> correct, certain = jnp.array([True, False, True]), jnp.array([True, False, False])
      >>> round(float(patch_accuracy_vs_uncertainty(correct, certain)), 4)
      0.6667
    """
    if correct.shape != certain.shape or correct.ndim != 1:
        raise ValueError(
            f"correct and certain must be [B], got {correct.shape} and {certain.shape}."
        )
    for name, x in (("correct", correct), ("certain", certain)):
        if x.dtype != jnp.bool_:
            raise TypeError(f"{name} must be bool, got {x.dtype}.")
    check_where(where, correct.shape)
    return jnp.mean((correct == certain).astype(jnp.float32), where=where)


def check_where(where: Any, shape: tuple[int, ...]) -> None:
    """Raises unless `where` is None or a bool array of that shape: another might broadcast."""
    if where is None:
        return
    if not hasattr(where, "dtype"):
        raise TypeError(f"where must be an array, got a {type(where).__name__}: use np.asarray.")
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be bool (True = counts), got {where.dtype}.")
    if where.shape != shape:
        raise ValueError(f"where must have shape {shape}, got {where.shape}.")


def check_probabilities(probabilities: Any, where: Any = None, *, finite: bool = False) -> None:
    """Raises ValueError unless the last axis holds probabilities, where they count.

    Traced arrays pass; NaN does, unless they are to be `finite`.
    """

    def wrong(numbers: np.ndarray) -> np.ndarray:
        numbers = numbers.astype(np.float32)
        total = numbers.sum(axis=-1)
        found = (numbers < 0).any(axis=-1) | (np.abs(total - 1.0) > _SUM_TOLERANCE)
        return found | np.isnan(total) if finite else found

    place = numerics.first_wrong(probabilities, wrong, where)
    if place is not None:
        shown = np.asarray(probabilities, np.float32)[place].tolist()
        raise ValueError(
            f"probabilities hold {shown} at {list(place)}; expected numbers of at least 0 whose "
            f"sum is 1. Apply jax.nn.softmax to logits first."
        )
