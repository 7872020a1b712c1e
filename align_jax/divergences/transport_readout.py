"""Conditional transport as two attention read-outs that share their scores, a block at a time.

Both costs are inner products, `c_ij = a_i . b_j`: of directions for the cosine, of vectors with
their squared norms beside them for the squared Euclidean distance. A query's mean cost along its
plan is therefore `a_i . sum_j plan_ij b_j`, and a key's the same the other way round: attention
whose values are the costs' factors. No matrix of costs is ever made, and of the scores' matrix
one block at a time. The backward pass makes each block again from the plans' normalisers; the
factor that turns a plan into the gradient of its scores, `c_ij` minus the mean cost of row or
column, is a product of narrow matrices as well.

A score is at most `|p_i| |q_j|`. Where these bounds are moderate, as they are unless a navigator
has diverged, `exp(s_ij)` cannot leave float32's range: one exponential then serves both plans, with
no maximum to subtract. Otherwise each plan has its own, safe for every finite score: the columns'
in the manner of online softmax (Milakov & Gimelshein 2018).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from align_jax import numerics
from align_jax.divergences import blocks

# exp(60) times millions of tokens and exp(-60) both fit float32. What the exponentials are
# multiplied by, costs' factors above 1, takes its share of that.
LARGEST_SHARED_SCORE = 60.0

# Below every score that saturated inputs can produce (1e18 times the number of features), yet
# finite, so that a sample without any token gives no NaN.
MASKED = -1e30


class _Plans(NamedTuple):
    """What one direction keeps of its plan: all that the backward pass needs."""

    log_normaliser: Float[Array, "L T"]
    readout: Float[Array, "L T K"]


def cost_factors(
    query: Float[Array, "L N F"],
    key: Float[Array, "L M F"],
    query_mask: Bool[Array, "L N"],
    key_mask: Bool[Array, "L M"],
    cost: str,
) -> tuple[Float[Array, "L N K"], Float[Array, "L M K"]]:
    """`a` and `b` with `c_ij = a_i . b_j`, all 0 for padding.

    The queries' last column is 1, and so is the keys' last but one: that of the constant in the
    other side's factor, and the column that counts the tokens which take part.
    """
    one, other = (mask[..., None].astype(jnp.float32) for mask in (query_mask, key_mask))
    query, key = query * one, key * other
    if cost == "cosine":
        return (
            jnp.concatenate([-query, one, one], axis=-1),
            jnp.concatenate([key, other, jnp.zeros_like(other)], axis=-1),
        )
    query_square, key_square = (jnp.sum(x * x, axis=-1, keepdims=True) for x in (query, key))
    return (
        jnp.concatenate([-2.0 * query, query_square, one], axis=-1),
        jnp.concatenate([key, other, key_square], axis=-1),
    )


@jax.custom_vjp
def mean_costs(
    query: Float[Array, "L N K"],
    key: Float[Array, "L M K"],
    query_navigation: Float[Array, "L N G"],
    key_navigation: Float[Array, "L M G"],
) -> tuple[Float[Array, "L N"], Float[Array, "L M"]]:
    """The mean cost of each query's plan over the keys, and of each key's over the queries.

    Queries and keys are factors of the cost, from `cost_factors`; the navigator's outputs are 0 for
    padding, whose results are of no meaning.
    """
    return _forward(query, key, query_navigation, key_navigation)[0]


def _forward(*inputs: Array) -> tuple[tuple[Array, Array], Any]:
    query, key, query_navigation, key_navigation = inputs
    largest = [
        jnp.max(jnp.sum(x * x, axis=-1), axis=-1) for x in (query_navigation, key_navigation)
    ]
    factor = jnp.maximum(jnp.max(jnp.abs(query)), jnp.max(jnp.abs(key)))
    limit = jnp.maximum(LARGEST_SHARED_SCORE - jnp.log(jnp.maximum(factor, 1.0)), 0.0)
    shared = jnp.all(largest[0] * largest[1] <= limit**2)
    rows, columns = jax.lax.cond(shared, _shared_plans, _separate_plans, *inputs)
    costs = jnp.sum(query * rows.readout, axis=-1), jnp.sum(key * columns.readout, axis=-1)
    return costs, (inputs, shared, rows, columns)


def _backward(residuals: Any, cotangents: tuple[Array, Array]) -> tuple[Array, ...]:
    (query, key, query_navigation, key_navigation), shared, rows, columns = residuals
    row_weight, column_weight = cotangents
    row_cost = jnp.sum(query * rows.readout, axis=-1)
    column_cost = jnp.sum(key * columns.readout, axis=-1)
    arguments = (
        (query, query_navigation, rows.log_normaliser, row_weight, row_cost),
        (key, key_navigation, columns.log_normaliser, column_weight, column_cost),
    )
    of_query, of_query_navigation, of_key, of_key_navigation = jax.lax.cond(
        shared, _shared_gradients, _separate_gradients, *arguments
    )
    return (
        of_query + row_weight[..., None] * rows.readout,
        of_key + column_weight[..., None] * columns.readout,
        of_query_navigation,
        of_key_navigation,
    )


mean_costs.defvjp(_forward, _backward)


def _scores(query_navigation: Array, key_navigation: Array) -> Array:
    return numerics.product(query_navigation, key_navigation.mT)


def _counted(query: Array, key: Array) -> tuple[Bool[Array, "L N 1"], Bool[Array, "L 1 M"]]:
    """Which tokens take part, read off the columns of ones."""
    return query[..., -1:] > 0, (key[..., -2:-1] > 0).mT


def _normalised(sums: Float[Array, "L T K"], count: Float[Array, "L T 1"]) -> _Plans:
    """From sums weighted with `exp(score)`; a plan over no token reads out 0."""
    count = jnp.where(count > 0, count, 1.0)
    return _Plans(jnp.log(count[..., 0]), sums / count)


def _normalised_columns(sums: Float[Array, "L K M"]) -> _Plans:
    sums = sums.mT
    return _normalised(sums, sums[..., -1:])


def _shared_plans(
    query: Array, key: Array, query_navigation: Array, key_navigation: Array
) -> tuple[_Plans, _Plans]:
    def make(key: Array, key_navigation: Array) -> Any:
        def body(sums: Array, rows: tuple[Array, Array]) -> tuple[Array, _Plans]:
            query, query_navigation = rows
            weights = jnp.exp(_scores(query_navigation, key_navigation))
            of_rows = numerics.product(weights, key)
            sums = sums + blocks.column_sums(weights, query)
            return sums, _normalised(of_rows, of_rows[..., -2:-1])

        return _column_start(key)[0], body, _normalised_columns

    return blocks.over_blocks(make, (query, query_navigation), (key, key_navigation))


def _separate_plans(
    query: Array, key: Array, query_navigation: Array, key_navigation: Array
) -> tuple[_Plans, _Plans]:
    def make(key: Array, key_navigation: Array) -> Any:
        def body(
            columns: tuple[Array, Array], rows: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], _Plans]:
            peak, sums = columns
            query, query_navigation = rows
            scores = _scores(query_navigation, key_navigation)
            valid_queries, valid_keys = _counted(query, key)
            row_scores = jnp.where(valid_keys, scores, MASKED)
            row_log = jax.nn.logsumexp(row_scores, axis=-1)
            plan = jnp.exp(row_scores - row_log[..., None])

            column_scores = jnp.where(valid_queries, scores, MASKED)
            new_peak = jnp.maximum(peak, jnp.max(column_scores, axis=-2))
            weights = jnp.exp(column_scores - new_peak[..., None, :])
            sums = sums * jnp.exp(peak - new_peak)[..., None, :]
            sums += blocks.column_sums(weights, query)
            return (new_peak, sums), _Plans(row_log, numerics.product(plan, key))

        def finish(columns: tuple[Array, Array]) -> _Plans:
            peak, sums = columns
            plans = _normalised_columns(sums)
            return plans._replace(log_normaliser=plans.log_normaliser + peak)

        start = jnp.full(key.shape[:-1], 2 * MASKED, jnp.float32), *_column_start(key)
        return start, body, finish

    return blocks.over_blocks(make, (query, query_navigation), (key, key_navigation))


# One side's factors, navigation, normalisers, weights of the mean costs, and mean costs.
_Side = tuple[Array, Array, Array, Array, Array]


def _shared_gradients(rows: _Side, columns: _Side) -> tuple[Array, Array, Array, Array]:
    """Gradients through the plans: of queries, their navigation, keys, their navigation."""

    def side(of_side: _Side) -> tuple[Array, ...]:
        # Weight over normaliser is what turns exp(score) into the plan's share in the loss.
        factors, navigation, log, weight, mean = of_side
        scale = weight * jnp.exp(-log)
        return factors, factors * scale[..., None], navigation, scale, scale * mean

    def make(key: Array, scaled_key: Array, key_navigation: Array, *of_columns: Array) -> Any:
        column_scale, column_mean = (x[..., None, :] for x in of_columns)

        def body(sums: tuple[Array, Array], rows: tuple[Array, ...]) -> Any:
            query, scaled_query, query_navigation, *of_rows = rows
            row_scale, row_mean = (x[..., None] for x in of_rows)
            weights = jnp.exp(_scores(query_navigation, key_navigation))
            of_query = numerics.product(weights, scaled_key)
            of_key = sums[0] + blocks.column_sums(weights, scaled_query)
            costs = numerics.product(query, key.mT)
            of_scores = costs * (row_scale + column_scale) - (row_mean + column_mean)
            of_scores *= weights
            of_query_navigation = numerics.product(of_scores, key_navigation)
            of_key_navigation = sums[1] + blocks.column_sums(of_scores, query_navigation)
            return (of_key, of_key_navigation), (of_query, of_query_navigation)

        return _column_start(key, key_navigation), body, _columns_as_tokens

    of_rows, of_columns = blocks.over_blocks(make, side(rows), side(columns))
    return *of_rows, *of_columns


def _column_start(*tokens: Array) -> tuple[Array, ...]:
    """Zeros for `blocks.column_sums` to be added to."""
    return tuple(jnp.zeros_like(x.mT) for x in tokens)


def _columns_as_tokens(sums: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(x.mT for x in sums)


def _separate_gradients(rows: _Side, columns: _Side) -> tuple[Array, Array, Array, Array]:
    """As `_shared_gradients`, with an exponential for each plan."""

    def make(key: Array, key_navigation: Array, *of_columns: Array) -> Any:
        column_log, column_weight, column_mean = (x[..., None, :] for x in of_columns)

        def body(sums: tuple[Array, Array], rows: tuple[Array, ...]) -> Any:
            query, query_navigation, *of_rows = rows
            row_log, row_weight, row_mean = (x[..., None] for x in of_rows)
            scores = _scores(query_navigation, key_navigation)
            costs = numerics.product(query, key.mT)
            valid_queries, valid_keys = _counted(query, key)
            row_plan = jnp.exp(jnp.where(valid_keys, scores, MASKED) - row_log) * row_weight
            column_plan = jnp.exp(jnp.where(valid_queries, scores, MASKED) - column_log)
            column_plan *= column_weight
            of_scores = row_plan * (costs - row_mean) + column_plan * (costs - column_mean)
            of_key = sums[0] + blocks.column_sums(row_plan, query)
            of_key_navigation = sums[1] + blocks.column_sums(of_scores, query_navigation)
            of_query = numerics.product(column_plan, key)
            of_query_navigation = numerics.product(of_scores, key_navigation)
            return (of_key, of_key_navigation), (of_query, of_query_navigation)

        return _column_start(key, key_navigation), body, _columns_as_tokens

    of_rows, of_columns = blocks.over_blocks(make, rows, columns)
    return *of_rows, *of_columns
