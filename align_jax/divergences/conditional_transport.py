"""Bidirectional conditional transport, AA-CT (Zhang et al. 2021, Eq. 4; Zheng & Zhou 2020).

Two implementations of one number: "dense" builds the `[N, M]` matrices and is the oracle;
"blockwise" streams over blocks of queries, needs memory linear in the number of tokens, and
recomputes the blocks in its backward pass.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from align_jax import numerics
from align_jax.divergences import blocks

COSTS = ("cosine", "squared_euclidean")

# Below every score that saturated inputs can produce (1e18 times the number of features), yet
# finite, so that a sample without any token gives no NaN.
_MASKED = -1e30


def conditional_transport(
    query_features: Float[Array, "B N H F"],
    key_features: Float[Array, "B M H F"],
    query_navigation: Float[Array, "B N H G"],
    key_navigation: Float[Array, "B M H G"],
    *,
    query_mask: Bool[Array, "B N"] | None = None,
    key_mask: Bool[Array, "B M"] | None = None,
    rho: float = 0.5,
    cost: str = "cosine",
    implementation: str | None = None,
) -> Float[Array, "B H"]:
    """The cost of carrying each query to the keys the navigator chooses for it, and back.

    With scores `s_ij = query_navigation_i . key_navigation_j`, each query goes to the keys with
    probabilities `softmax_j s_ij`, and each key to the queries with `softmax_i s_ij`. The result is
    `rho` times the mean cost of the first plan plus `1 - rho` times that of the second.

    Args:
      query_features: the critic's features of the queries; the cost is measured between these.
      key_features: the critic's features of the keys.
      query_navigation: the navigator's outputs for the queries.
      key_navigation: the navigator's outputs for the keys.
      query_mask: True for the queries that take part; None for all.
      key_mask: True for the keys that take part; None for all.
      rho: weight of the query-to-key direction, in `[0, 1]`.
      cost: "cosine" (`1 - cosine`, as the paper) or "squared_euclidean".
      implementation: "dense", "blockwise", or None to choose by size.

    Returns:
      One value per sample and head, in units of the cost (in `[0, 2]` for the cosine); 0 for a
      sample without queries or keys.

    Raises:
      ValueError: for a wrong rank, an empty axis, shapes that do not fit, an unknown cost or
        implementation, or rho outside `[0, 1]`.
      TypeError: for clouds that are not floating point or masks that are not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> same = jnp.ones((1, 3, 2, 4))
      >>> opposite = -same
      >>> conditional_transport(same, opposite, same, same).tolist()
      [[2.0, 2.0]]
    """
    _check(query_features, key_features, query_navigation, key_navigation, query_mask, key_mask)
    numerics.check_choice("cost", cost, COSTS)
    if not 0.0 <= rho <= 1.0:
        raise ValueError(f"rho must lie in [0, 1], got {rho}.")
    if implementation is None:
        implementation = blocks.default_implementation(query_features, key_features)
    numerics.check_choice("implementation", implementation, blocks.IMPLEMENTATIONS)

    query_features, query_valid = numerics.prepare(query_features, query_mask)
    key_features, key_valid = numerics.prepare(key_features, key_mask)
    query_navigation, _ = numerics.prepare(query_navigation, query_mask)
    key_navigation, _ = numerics.prepare(key_navigation, key_mask)
    if cost == "cosine":
        query_features = numerics.unit_vectors(query_features)
        key_features = numerics.unit_vectors(key_features)
    else:
        query_features, key_features = numerics.centred(query_features, key_features)

    solve = _dense if implementation == "dense" else _blockwise
    forward, backward = solve(
        query_features, key_features, query_navigation, key_navigation, query_valid, key_valid, cost
    )
    both = jnp.any(query_valid, axis=1) & jnp.any(key_valid, axis=1)
    return jnp.where(both[:, None], rho * forward + (1.0 - rho) * backward, 0.0)


def _check(
    query_features: Array,
    key_features: Array,
    query_navigation: Array,
    key_navigation: Array,
    query_mask: Array | None,
    key_mask: Array | None,
) -> None:
    names = ("query_features", "key_features")
    numerics.check_clouds(
        query_features, key_features, query_mask, key_mask, names=names, axes="B N H F"
    )
    names = ("query_navigation", "key_navigation")
    numerics.check_clouds(
        query_navigation, key_navigation, query_mask, key_mask, names=names, axes="B N H G"
    )
    pairs = (("query", query_features, query_navigation), ("key", key_features, key_navigation))
    for side, features, navigation in pairs:
        if features.shape[:3] != navigation.shape[:3]:
            raise ValueError(
                f"{side}_features and {side}_navigation must agree in their first three axes "
                f"(batch, tokens, heads), got {features.shape} and {navigation.shape}."
            )


def _scores_and_costs(
    query_features: Array,
    key_features: Array,
    query_navigation: Array,
    key_navigation: Array,
    cost: str,
) -> tuple[Float[Array, "B H N M"], Float[Array, "B H N M"]]:
    """Scores and costs between a block of queries and all keys; features already directions."""
    scores = jnp.einsum(
        "bnhg,bmhg->bhnm", query_navigation, key_navigation, precision=numerics.PRECISION
    )
    if cost == "squared_euclidean":
        return scores, numerics.squared_distance(query_features, key_features)
    products = jnp.einsum(
        "bnhf,bmhf->bhnm", query_features, key_features, precision=numerics.PRECISION
    )
    return scores, 1.0 - products


def _dense(
    query_features: Array,
    key_features: Array,
    query_navigation: Array,
    key_navigation: Array,
    query_mask: Array,
    key_mask: Array,
    cost: str,
) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
    """Mean cost of the query-to-key and of the key-to-query plan, all pairs at once."""
    scores, costs = _scores_and_costs(
        query_features, key_features, query_navigation, key_navigation, cost
    )
    to_keys = jax.nn.softmax(jnp.where(key_mask[:, None, None, :], scores, _MASKED), axis=-1)
    to_queries = jax.nn.softmax(jnp.where(query_mask[:, None, :, None], scores, _MASKED), axis=-2)
    forward = jnp.sum(to_keys * costs, axis=-1)
    backward = jnp.sum(to_queries * costs, axis=-2)
    return (
        numerics.masked_mean(forward, query_mask[:, None, :], axis=-1),
        numerics.masked_mean(backward, key_mask[:, None, :], axis=-1),
    )


# The blockwise form. One pass over blocks of queries serves both directions: a block sees all keys,
# so its rows' softmax is complete, while the columns' maximum, normaliser and cost are accumulated
# in the manner of online softmax (Milakov & Gimelshein 2018). The backward pass makes each block
# again from the rows' and columns' log-normalisers and mean costs, which are all it has to keep.


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _blockwise(
    query_features: Array,
    key_features: Array,
    query_navigation: Array,
    key_navigation: Array,
    query_mask: Array,
    key_mask: Array,
    cost: str,
) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
    """Equal to `_dense`, in memory linear in the number of tokens."""
    arguments = (query_features, key_features, query_navigation, key_navigation)
    return _blockwise_forward(*arguments, query_mask, key_mask, cost)[0]


def _blockwise_forward(
    query_features: Array,
    key_features: Array,
    query_navigation: Array,
    key_navigation: Array,
    query_mask: Array,
    key_mask: Array,
    cost: str,
) -> tuple[tuple[Array, Array], Any]:
    size = blocks.block_length(query_features, key_features)
    batch, queries, heads, _ = query_features.shape
    keys = key_features.shape[1]

    def block(columns: tuple[Array, Array, Array], rows: tuple[Array, ...]) -> Any:
        peak, normaliser, weighted = columns
        features, navigation, mask = rows
        scores, costs = _scores_and_costs(features, key_features, navigation, key_navigation, cost)
        row_scores = jnp.where(key_mask[:, None, None, :], scores, _MASKED)
        row_log = jax.nn.logsumexp(row_scores, axis=-1)
        row_cost = jnp.sum(jnp.exp(row_scores - row_log[..., None]) * costs, axis=-1)

        column_scores = jnp.where(mask[:, None, :, None], scores, _MASKED)
        new_peak = jnp.maximum(peak, jnp.max(column_scores, axis=-2))
        weights = jnp.exp(column_scores - new_peak[..., None, :])
        shrink = jnp.exp(peak - new_peak)
        normaliser = normaliser * shrink + jnp.sum(weights, axis=-2)
        weighted = weighted * shrink + jnp.sum(weights * costs, axis=-2)
        return (new_peak, normaliser, weighted), (row_log, row_cost)

    start = (
        jnp.full((batch, heads, keys), 2 * _MASKED),
        jnp.zeros((batch, heads, keys)),
        jnp.zeros((batch, heads, keys)),
    )
    rows = tuple(blocks.split(x, size) for x in (query_features, query_navigation, query_mask))
    (peak, normaliser, weighted), (row_log, row_cost) = jax.lax.scan(block, start, rows)
    column_log = peak + jnp.log(normaliser)
    column_cost = weighted / normaliser
    row_log, row_cost = (
        jnp.moveaxis(blocks.join(jnp.moveaxis(x, 2, 3), queries), 1, 2) for x in (row_log, row_cost)
    )
    value = (
        numerics.masked_mean(row_cost, query_mask[:, None, :], axis=-1),
        numerics.masked_mean(column_cost, key_mask[:, None, :], axis=-1),
    )
    inputs = (query_features, key_features, query_navigation, key_navigation, query_mask, key_mask)
    return value, (inputs, (row_log, row_cost), (column_log, column_cost))


def _blockwise_backward(cost: str, residuals: Any, cotangents: tuple[Array, Array]) -> Any:
    inputs, (row_log, row_cost), (column_log, column_cost) = residuals
    query_features, key_features, query_navigation, key_navigation, query_mask, key_mask = inputs
    size = blocks.block_length(query_features, key_features)
    queries = query_features.shape[1]
    # What one row's and one column's mean cost contribute to the loss; 0 for padding.
    row_weight = cotangents[0][..., None] * numerics.token_weights(query_mask)[:, None, :]
    column_weight = cotangents[1][..., None] * numerics.token_weights(key_mask)[:, None, :]

    def block(sums: tuple[Array, Array], rows: Any) -> Any:
        features, navigation, mask, log, mean, weight = rows
        log, mean, weight = (jnp.swapaxes(x, 1, 2)[..., None] for x in (log, mean, weight))

        def pairs(features: Array, keys: Array, navigation: Array, key_nav: Array) -> Any:
            return _scores_and_costs(features, keys, navigation, key_nav, cost)

        (scores, costs), pull_back = jax.vjp(
            pairs, features, key_features, navigation, key_navigation
        )
        row_plan = jnp.exp(jnp.where(key_mask[:, None, None, :], scores, _MASKED) - log) * weight
        column_plan = jnp.where(mask[:, None, :, None], scores, _MASKED)
        column_plan = jnp.exp(column_plan - column_log[..., None, :])
        column_plan *= column_weight[..., None, :]
        score_gradient = row_plan * (costs - mean)
        score_gradient += column_plan * (costs - column_cost[..., None, :])
        gradients = pull_back((score_gradient, row_plan + column_plan))
        of_features, of_keys, of_navigation, of_key_navigation = gradients
        return (sums[0] + of_keys, sums[1] + of_key_navigation), (of_features, of_navigation)

    per_row = (jnp.swapaxes(x, 1, 2) for x in (row_log, row_cost, row_weight))
    rows = (query_features, query_navigation, query_mask, *per_row)
    start = (jnp.zeros_like(key_features), jnp.zeros_like(key_navigation))
    (of_keys, of_key_navigation), of_rows = jax.lax.scan(
        block, start, tuple(blocks.split(x, size) for x in rows)
    )
    of_features, of_navigation = (blocks.join(x, queries) for x in of_rows)
    return of_features, of_keys, of_navigation, of_key_navigation, None, None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
