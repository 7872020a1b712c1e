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
    implementation: str = "blockwise",
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
      implementation: "blockwise" (memory linear in the number of tokens; the backward pass makes
        each block again) or "dense", its oracle.

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
    numerics.check_choice("implementation", implementation, blocks.IMPLEMENTATIONS)
    query, query_mask = numerics.prepare(query, query_mask)
    key, key_mask = numerics.prepare(key, key_mask)
    # The shift must be one for all three kernels, or identical clouds would round differently.
    query, key = numerics.centred(query, key)
    both = jnp.any(query_mask, axis=1) & jnp.any(key_mask, axis=1)

    batch, _, heads, _ = query.shape
    query_weights, key_weights = (
        jnp.repeat(numerics.token_weights(mask), heads, axis=0) for mask in (query_mask, key_mask)
    )
    queries, keys = (
        (blocks.per_head(query), query_weights),
        (blocks.per_head(key), key_weights),
    )
    mean_kernel = _dense if implementation == "dense" else _blockwise
    within = mean_kernel(queries, queries, bandwidth) + mean_kernel(keys, keys, bandwidth)
    discrepancy = within - 2.0 * mean_kernel(queries, keys, bandwidth)
    discrepancy = numerics.clamp_at_zero(discrepancy).reshape(batch, heads)
    return jnp.where(both[:, None], discrepancy, 0.0)


# Points [L, N, D] and their probabilities [L, N].
_Cloud = tuple[Array, Array]


def _dense(x: _Cloud, y: _Cloud, bandwidth: float) -> Float[Array, "L"]:
    """The mean of the kernel over all pairs."""
    (x_points, x_weights), (y_points, y_weights) = x, y
    distance = numerics.squared_distance(x_points[:, :, None], y_points[:, :, None])[:, 0]
    kernel = jnp.exp(-distance / (2.0 * bandwidth**2))
    weights = x_weights, y_weights
    return jnp.einsum("lnm,ln,lm->l", kernel, *weights, precision=numerics.PRECISION)


def _blockwise(x: _Cloud, y: _Cloud, bandwidth: float) -> Float[Array, "L"]:
    """Equal to `_dense`, in memory linear in the number of tokens."""
    heads, rows = x[1].shape
    group, size = blocks.block_shape(heads, rows, y[1].shape[1])

    def one_group(x_points: Array, x_weights: Array, y_points: Array, y_weights: Array) -> Array:
        @jax.checkpoint
        def block(total: Array, part: _Cloud) -> tuple[Array, None]:
            return total + _dense(part, (y_points, y_weights), bandwidth), None

        parts = (blocks.split(x_points, size), blocks.split(x_weights, size))
        return jax.lax.scan(block, jnp.zeros(group, jnp.float32), parts)[0]

    return blocks.map_heads(one_group, group, *x, *y)
