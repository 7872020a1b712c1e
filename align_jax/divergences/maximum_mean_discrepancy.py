"""Maximum mean discrepancy, the paper's yardstick (Gretton et al. 2012, JMLR 13, Eq. 5)."""

import jax
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
    bandwidth: float = 1.0,
    implementation: str | None = None,
) -> Float[Array, "B H"]:
    """Squared MMD between queries and keys, kernel `exp(-|x - y|^2 / (2 bandwidth^2))`.

    This is the biased V-statistic: the means over pairs include each point with itself. It is
    therefore never negative, exactly 0 for identical clouds, and above 0 by about `1/N + 1/M` for
    two finite samples of one distribution.

    Args:
      query: the queries.
      key: the keys.
      query_mask: True for the queries that take part; None for all.
      key_mask: True for the keys that take part; None for all.
      bandwidth: the kernel's standard deviation, in the units of the queries; above 0.
      implementation: "dense", "blockwise" (memory linear in the number of tokens; the backward pass
        makes each block again), or None to choose by size.

    Returns:
      One value per sample and head, without unit, in `[0, 2]`; 0 for a sample without queries or
      keys.

    Raises:
      ValueError: for a wrong rank, an empty axis, shapes that do not fit, bandwidth <= 0, or
        an unknown implementation.
      TypeError: for clouds that are not floating point or masks that are not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> cloud = jnp.arange(12.0).reshape(1, 3, 2, 2)
      >>> maximum_mean_discrepancy(cloud, cloud).tolist()
      [[0.0, 0.0]]
    """
    numerics.check_clouds(query, key, query_mask, key_mask, names=("query", "key"), axes="B N H D")
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be above 0, got {bandwidth}.")
    query, query_mask = numerics.prepare(query, query_mask)
    key, key_mask = numerics.prepare(key, key_mask)
    # The shift must be one for all three kernels, or identical clouds would round differently.
    query, key = numerics.centred(query, key)
    query_weights, key_weights = map(numerics.token_weights, (query_mask, key_mask))

    implementation = implementation or blocks.default_implementation(query, key)
    numerics.check_choice("implementation", implementation, blocks.IMPLEMENTATIONS)

    def dense(x: Array, y: Array, x_weights: Array, y_weights: Array) -> Array:
        distance = numerics.squared_distance(x, y)
        kernel = jnp.exp(-distance / (2.0 * bandwidth**2))
        return jnp.einsum("bhnm,bn,bm->bh", kernel, x_weights, y_weights)

    def blockwise(x: Array, y: Array, x_weights: Array, y_weights: Array) -> Array:
        size = blocks.block_length(x, y)

        @jax.checkpoint
        def block(total: Array, rows: tuple[Array, Array]) -> tuple[Array, None]:
            return total + dense(rows[0], y, rows[1], y_weights), None

        start = jnp.zeros((x.shape[0], x.shape[2]))
        rows = (blocks.split(x, size), blocks.split(x_weights, size))
        return jax.lax.scan(block, start, rows)[0]

    mean_kernel = dense if implementation == "dense" else blockwise
    within = mean_kernel(query, query, query_weights, query_weights)
    within += mean_kernel(key, key, key_weights, key_weights)
    discrepancy = within - 2.0 * mean_kernel(query, key, query_weights, key_weights)
    both = jnp.any(query_mask, axis=1) & jnp.any(key_mask, axis=1)
    return jnp.where(both[:, None], numerics.clamp_at_zero(discrepancy), 0.0)
