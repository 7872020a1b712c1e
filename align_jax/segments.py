"""Softmax over the edges that share a node."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def segment_softmax(
    logits: Float[Array, "Z H"],
    segments: Int[Array, "Z"],
    num_segments: int,
    *,
    indices_are_sorted: bool = False,
) -> Float[Array, "Z H"]:
    """Softmax over the edges that share a segment, each head on its own.

    Stable: every segment's largest logit is subtracted first. Segments without edges contribute
    nothing and produce no NaN.

    Args:
        logits: one row per edge, [Z, H].
        segments: the segment (a node) of each edge, [Z], in [0, num_segments).
        num_segments: number of segments, a Python integer.
        indices_are_sorted: whether `segments` ascends; on some devices sums are then faster.

    Returns:
        Weights [Z, H] that sum to 1 within each segment.

    Example:
        >>> weights = segment_softmax(jnp.zeros((3, 1)), jnp.array([0, 0, 2]), 3)
        >>> weights[:, 0].tolist()
        [0.5, 0.5, 1.0]
    """
    options: dict[str, Any] = {
        "num_segments": num_segments,
        "indices_are_sorted": indices_are_sorted,
    }
    # The peak cancels in the quotient, so no gradient need pass through it.
    peak = jax.ops.segment_max(jax.lax.stop_gradient(logits), segments, **options)
    exponentials = jnp.exp(logits - peak[segments])
    totals = jax.ops.segment_sum(exponentials, segments, **options)
    return exponentials / totals[segments]
