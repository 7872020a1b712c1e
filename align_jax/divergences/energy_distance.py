"""The energy distance (Székely & Rizzo 2013, J. Stat. Plan. Inference 143, 1249-1272)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from align_jax import numerics
from align_jax.divergences import blocks

# Closer pairs count as one point, for the root's slope has no end at 0. The squared distance of
# clouds whose spread is 1; far above this, what is rounding is 0 already.
_COINCIDENT = 1e-20


def energy_distance(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    *,
    query_mask: Bool[Array, "B N"] | None = None,
    key_mask: Bool[Array, "B M"] | None = None,
    implementation: str = "blockwise",
) -> Float[Array, "B H"]:
    """The energy distance as a share of its largest value, the coefficient of inhomogeneity `H`.

    `H = (2 E|q - k| - E|q - q'| - E|k - k'|) / (2 E|q - k|)` with Euclidean distances, means over
    all pairs, each point with itself included. It is 0 for equal samples and only for them, 1 for
    two single points apart, and depends neither on scale nor on position. It needs no bandwidth, no
    networks and no solver. No derivative, of whatever order and mode, runs through the denominator:
    training brings queries and keys together and gains nothing from moving both.

    Args:
      query: the queries.
      key: the keys.
      query_mask: True for the queries that take part; None for all.
      key_mask: True for the keys that take part; None for all.
      implementation: "blockwise" (memory linear in the number of tokens; the backward pass makes
        each block again) or "dense", its oracle.

    Returns:
      One value per sample and head, without unit, in `[0, 1]`; 0 for a sample without queries or
      keys.

    Raises:
      ValueError: for a wrong rank, an empty axis, shapes that do not fit, or an unknown
        implementation.
      TypeError: for vectors that are not floating point or masks that are not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> cloud = jnp.arange(12.0).reshape(1, 3, 2, 2)
      >>> energy_distance(cloud, cloud).tolist()
      [[0.0, 0.0]]
      >>> energy_distance(cloud[:, :1], cloud[:, 1:2] + 9.0).tolist()
      [[1.0, 1.0]]
    """
    numerics.check_clouds(query, key, query_mask, key_mask)
    numerics.check_choice("implementation", implementation, blocks.IMPLEMENTATIONS)
    query, query_mask = numerics.prepare(query, query_mask)
    key, key_mask = numerics.prepare(key, key_mask)
    both = jnp.any(query_mask, axis=1) & jnp.any(key_mask, axis=1)
    query, key = numerics.at_unit_spread(query, key, query_mask, key_mask)

    between, queries, keys = blocks.mean_over_pairs(
        _root, query, key, query_mask, key_mask, implementation
    )
    largest = jax.lax.stop_gradient(2.0 * between)
    energy = numerics.clamp_at_zero(2.0 * between - queries - keys)
    return jnp.where(both[:, None], energy / jnp.where(largest > 0, largest, 1.0), 0.0)


def _root(squared_distance: Array) -> Array:
    apart = ~(squared_distance <= _COINCIDENT)  # True of NaN, which must not become 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared_distance, 1.0)), 0.0)
