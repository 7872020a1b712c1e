"""Softmax over the edges that share a node."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from align_jax import numerics


def segment_softmax(
    logits: Float[Array, "Z H"],
    segments: Int[Array, "Z"],
    num_segments: int,
    *,
    indices_are_sorted: bool = False,
) -> Float[Array, "Z H"]:
    """Softmax over the edges that share a segment, each head on its own.

    Stable: every segment's largest logit is subtracted first. Segments without edges contribute
    nothing and produce no NaN. Where `segments` ascend and it is said, sums may be faster.

    Raises:
        ValueError: a segment that does not exist, or segments that do not ascend though they are
            said to. Where they are traced nothing is checked: weights are then of no meaning.
        TypeError: segments that are no integers.

    Example:
        >>> weights = segment_softmax(jnp.zeros((3, 1)), jnp.array([0, 0, 2]), 3)
        >>> weights[:, 0].tolist()
        [0.5, 0.5, 1.0]
    """
    check_segments("segments", segments, num_segments, ascending=indices_are_sorted)
    options: dict[str, Any] = {
        "num_segments": num_segments,
        "indices_are_sorted": indices_are_sorted,
    }
    # The peak cancels in the quotient, so no gradient need pass through it.
    peak = jax.ops.segment_max(jax.lax.stop_gradient(logits), segments, **options)
    exponentials = jnp.exp(logits - peak[segments])
    totals = jax.ops.segment_sum(exponentials, segments, **options)
    return exponentials / totals[segments]


def check_edges(senders: Any, receivers: Any, nodes: int) -> None:
    """Raises unless these are edges between so many nodes, by their receivers; as far as known."""
    if senders.ndim != 1 or senders.shape != receivers.shape or not senders.shape[0]:
        raise ValueError(
            f"senders and receivers have shapes {senders.shape} and {receivers.shape}; expected "
            f"two lists of the same length, one entry per edge, and at least one edge."
        )
    check_segments("senders", senders, nodes, ascending=False)
    check_segments("receivers", receivers, nodes, ascending=True)


def check_segments(name: str, segments: Any, num_segments: int, *, ascending: bool) -> None:
    """Raises for a segment that does not exist, or for a wrong order, unless they are traced."""
    numerics.check_indices(name, segments, num_segments, "nodes or segments")
    numbers = numerics.concrete(segments)
    if numbers is None or not ascending:
        return
    steps = np.flatnonzero(numbers[1:] < numbers[:-1])  # differences of unsigned ones wrap around
    if steps.size:
        raise ValueError(
            f"{name} are not sorted: entry {steps[0] + 1} is {numbers[steps[0] + 1]}, after "
            f"{numbers[steps[0]]}. Sort both lists: order = np.lexsort((senders, receivers))."
        )
