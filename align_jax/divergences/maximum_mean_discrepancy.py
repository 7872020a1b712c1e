"""Maximum mean discrepancy, the paper's yardstick (Gretton et al. 2012, JMLR 13, Eq. 5)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from align_jax import numerics
from align_jax.divergences import blocks


def maximum_mean_discrepancy(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    *,
    query_mask: Bool[Array, "B N"] | None = None,
    key_mask: Bool[Array, "B M"] | None = None,
    bandwidth: float | None = 1.0,
    implementation: str = "blockwise",
) -> Float[Array, "B H"]:
    """Squared MMD between queries and keys, kernel `exp(-|x - y|^2 / (2 bandwidth^2))`.

    This is the biased V-statistic: the means over pairs include each point with itself. It is
    therefore never negative, exactly 0 for identical samples, and above 0 by about `1/N + 1/M` for
    two finite samples of one distribution.

    Args:
      query: the queries.
      key: the keys.
      query_mask: True for the queries that take part; None for all.
      key_mask: True for the keys that take part; None for all.
      bandwidth: the kernel's standard deviation, in the units of the queries; above 0. None takes
        that of each sample's and head's own queries and keys, so that the value does not depend on
        their scale: half of their mean squared distance, any two of them, is its square. No
        derivative, of whatever order and mode, runs through it.
      implementation: "blockwise" (memory linear in the number of tokens; the backward pass makes
        each block again) or "dense", its oracle.

    Returns:
      One value per sample and head, without unit, in `[0, 2]`; 0 for a sample without queries or
      keys.

    Raises:
      ValueError: for a wrong rank, an empty axis, shapes that do not fit, a bandwidth that is not
        above 0 or infinite, or an unknown implementation.
      TypeError: for vectors that are not floating point or masks that are not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> cloud = jnp.arange(12.0).reshape(1, 3, 2, 2)
      >>> maximum_mean_discrepancy(cloud, cloud).tolist()
      [[0.0, 0.0]]
    """
    numerics.check_clouds(query, key, query_mask, key_mask)
    if bandwidth is not None:
        numerics.check_positive("bandwidth", bandwidth, squared=True)
    numerics.check_choice("implementation", implementation, blocks.IMPLEMENTATIONS)
    query, query_mask = numerics.prepare(query, query_mask)
    key, key_mask = numerics.prepare(key, key_mask)
    both = jnp.any(query_mask, axis=1) & jnp.any(key_mask, axis=1)
    if bandwidth is None:
        query, key = numerics.at_unit_spread(query, key, query_mask, key_mask)
    else:
        query, key = query / bandwidth, key / bandwidth
    between, queries, keys = blocks.mean_over_pairs(
        _kernel, query, key, query_mask, key_mask, implementation
    )
    discrepancy = numerics.clamp_at_zero(queries + keys - 2.0 * between)
    return jnp.where(both[:, None], discrepancy, 0.0)


def _kernel(squared_distance: Array) -> Array:
    return jnp.exp(-0.5 * squared_distance)
