"""Streaming over blocks of one cloud's tokens, so that no `[N, M]` matrix need exist as a whole.

Small blocks serve two ends: the memory that is needed grows with the number of tokens rather than
with its square, and on a CPU everything that is done to a block finds it in the cache.

Letters beside those of `numerics`: L, heads of all samples in a row, `B * H` of them.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from align_jax import numerics, placement

# Of a divergence between pairs of tokens: all pairs at once, or a block of rows at a time.
IMPLEMENTATIONS = ("dense", "blockwise")

# Pairs in one block, if a block is no larger than its rows demand. On a CPU half a megabyte of
# float32, which fits a core's cache; an accelerator wants few and large operations.
BLOCK_SIZE = 2**17
ACCELERATOR_BLOCK_SIZE = 2**24
# Fewer rows than these would spend more on what is summed per column than on the pairs.
LEAST_ROWS = 64

# XLA for CPUs cannot emit the smallest products of batches of matrices once it has turned them
# round, as it does where a transposition follows: it ends the process.
_LEAST_PRODUCT = 8

Tree = TypeVar("Tree")

# Points [L, N, D] and their probabilities [L, N].
Cloud = tuple[Array, Array]


def in_blocks(
    function: Callable[..., Any], heads: int, rows: int, columns: int, *arrays: Any
) -> Any:
    """Calls `function(shape, *arrays)` with a block's heads and rows, as the platform has them.

    There are L `heads` of all samples, N `rows`, and M `columns`, all of which are in a block. The
    function has the same result for every shape.
    """
    if placement.spread_by_compiler():
        # All heads: a loop along an axis that the compiler has cut would first gather it.
        size = ACCELERATOR_BLOCK_SIZE // (heads * columns)
        return function((heads, min(rows, max(LEAST_ROWS, size))), *arrays)
    sizes = BLOCK_SIZE, ACCELERATOR_BLOCK_SIZE
    on_cpu, elsewhere = (
        functools.partial(function, block_shape(heads, rows, columns, size)) for size in sizes
    )
    if on_cpu.args == elsewhere.args:
        return on_cpu(*arrays)
    return placement.by_platform(on_cpu, elsewhere, *arrays)


def block_shape(heads: int, rows: int, columns: int, size: int) -> tuple[int, int]:
    """How many heads, and how many rows of each, make a block of `size` pairs with all columns.

    The first result divides the heads; a block is larger where its least rows demand it.
    """
    whole = size // (rows * columns)
    if whole == 0:
        return 1, min(rows, max(LEAST_ROWS, size // columns))
    return max(n for n in range(1, min(whole, heads) + 1) if heads % n == 0), rows


def per_head(x: Float[Array, "B N H F"]) -> Float[Array, "L N F"]:
    """Samples and heads on one axis."""
    return jnp.swapaxes(x, 1, 2).reshape(-1, x.shape[1], x.shape[3])


def map_heads(function: Callable[..., Tree], group: int, *arrays: Array) -> Tree:
    """Applies a function of arrays `[group, ...]` along the first axis of arrays `[L, ...]`."""

    def parts(x: Array) -> Array:
        return x.reshape(-1, group, *x.shape[1:])

    results = jax.lax.map(lambda xs: function(*xs), tuple(map(parts, arrays)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


def split(x: Array, size: int) -> Array:
    """`[L, N, ...]` to `[blocks, L, size, ...]`, the last block filled up with zeros (False)."""
    blocks = -(-x.shape[1] // size)
    x = jnp.pad(x, [(0, 0), (0, blocks * size - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
    x = x.reshape(x.shape[0], blocks, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)


def join(x: Array, length: int) -> Array:
    """The inverse of `split` for `[blocks, L, size, ...]`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def over_blocks(make: Any, query: Any, key: Any) -> Any:
    """Runs a scan over blocks of queries, for a group of heads at a time.

    Args:
      make: takes the keys' arrays of a group; returns the scan's start and body and a function of
        its last carry.
      query: arrays `[L, N, ...]`.
      key: arrays `[L, M, ...]`.

    Returns:
      The bodies' results, joined, and the function's.
    """
    heads, queries = query[0].shape[:2]

    def of_shape(shape: tuple[int, int], *arrays: Array) -> Any:
        group, size = shape

        def one_group(*arrays: Array) -> Any:
            of_queries, of_keys = arrays[: len(query)], arrays[len(query) :]
            start, body, finish = make(*of_keys)
            if size == queries:
                carry, results = body(start, of_queries)
                return results, finish(carry)
            parts = tuple(split(x, size) for x in of_queries)
            carry, results = jax.lax.scan(body, start, parts)
            return jax.tree.map(lambda x: join(x, queries), results), finish(carry)

        return map_heads(one_group, group, *arrays)

    return in_blocks(of_shape, heads, queries, key[0].shape[1], *query, *key)


def column_sums(weights: Float[Array, "L N M"], rows: Float[Array, "L N K"]) -> Array:
    """`weights' rows`, the other way round: `[L, K, M]`.

    On a CPU the narrow matrix from the left takes a third of the time of the wide one transposed.
    """
    if min(weights.shape[-2:]) < _LEAST_PRODUCT:
        return jnp.sum(rows[..., :, None] * weights[..., None, :], axis=-3)
    # Without the barrier XLA would turn the product round again for a transposition that follows.
    return jax.lax.optimization_barrier(numerics.product(rows.mT, weights))


def mean_over_pairs(
    function: Callable[[Array], Array],
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    query_mask: Bool[Array, "B N"],
    key_mask: Bool[Array, "B M"],
    implementation: str,
) -> tuple[Float[Array, "B H"], Float[Array, "B H"], Float[Array, "B H"]]:
    """The mean of a function of the squared distance, over all pairs of tokens that take part.

    The function acts entry by entry; clouds are float32, padding zeroed. "dense" and "blockwise"
    are equal, the second in memory linear in the number of tokens.

    Returns:
      Of pairs of a query and a key, of two queries, and of two keys; a point is a pair with itself.
    """
    batch, _, heads, _ = query.shape
    mean = _dense_mean if implementation == "dense" else _mean

    def per_sample(
        x: tuple[Array, Array], y: tuple[Array, Array] | None = None
    ) -> Float[Array, "B H"]:
        # Each on its own: two keys may be near each other, and both far from all queries.
        (points, mask), (other, other_mask) = x, y or x
        clouds = [
            (per_head(cloud), jnp.repeat(numerics.token_weights(masks), heads, axis=0))
            for cloud, masks in zip(
                numerics.centred(points, other, mask, other_mask), (mask, other_mask), strict=True
            )
        ]
        return mean(function, clouds[0], clouds[1] if y else None).reshape(batch, heads)

    queries, keys = (query, query_mask), (key, key_mask)
    return per_sample(queries, keys), per_sample(queries), per_sample(keys)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _mean(function: Callable[[Array], Array], x: Cloud, y: Cloud | None) -> Float[Array, "L"]:
    """Over the pairs of a point of `x` and one of `y`, or of two of `x`, a block at a time."""

    def make(points: Array, weights: Array) -> Any:
        def body(total: Array, rows: Cloud) -> tuple[Array, None]:
            return total + _dense_mean(function, rows, (points, weights)), None

        return jnp.zeros(len(points), jnp.float32), body, lambda total: total

    return over_blocks(make, x, y or x)[1]


@_mean.defjvp
def _mean_jvp(function: Callable[[Array], Array], primals: Any, tangents: Any) -> Any:
    """Of the points: the weights come from masks."""
    value, *slopes = _mean_and_slopes(function, *primals)
    points = [cloud[0] for cloud in tangents if cloud is not None]
    moved = [jnp.sum(a * b, axis=(1, 2)) for a, b in zip(slopes, points, strict=True)]
    return value, sum(moved[1:], moved[0])


@functools.partial(jax.jit, static_argnums=0)  # traced once for all layers of the same shapes
def _mean_and_slopes(
    function: Callable[[Array], Array], x: Cloud, y: Cloud | None
) -> tuple[Array, ...]:
    """The mean and its gradients, by `x` and `y`, in one pass over the pairs.

    Each head has one mean, so that its gradient is known up to a factor before any cotangent is:
    the backward pass need not make the pairs again.
    """

    def make(points: Array, weights: Array) -> Any:
        weighed = _weighed(points, weights)

        @jax.checkpoint  # for derivatives of the gradient
        def body(carry: tuple[Array, ...], rows: Any) -> tuple[tuple[Array, ...], Array]:
            total, sums = carry
            row_points, row_weights, place = rows
            distance = _squared_distance(row_points, points)
            values, slopes = jax.jvp(function, (distance,), (jnp.ones_like(distance),))
            total = total + _weighted_sum(values, row_weights, weights)
            if y is None:  # a point and itself: in narrow kernels all else is less than rounding
                itself = place[..., None] == jnp.arange(points.shape[1])[None, None]
                slopes = jnp.where(itself, 0.0, slopes)
            # The derivative of |x - y|^2 by x is 2 (x - y).
            of_rows = _pulled(row_points, row_weights, numerics.product(slopes, weighed))
            if y is not None:
                sums = sums + column_sums(slopes, _weighed(row_points, row_weights))
            return (total, sums), of_rows

        def finish(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            total, sums = carry
            return (total,) if y is None else (total, _pulled(points, weights, sums.mT))

        start = jnp.zeros(len(points), jnp.float32), jnp.zeros_like(weighed.mT)
        return start, body, finish

    place = jnp.broadcast_to(jnp.arange(x[1].shape[1]), x[1].shape)
    of_x, (total, *of_y) = over_blocks(make, (*x, place), y or x)
    # Of its own pairs a point is in the rows and in the columns.
    return total, of_x if of_y else 2.0 * of_x, *of_y


def _weighed(points: Float[Array, "L N D"], weights: Float[Array, "L N"]) -> Array:
    """The weighted points, and beside them the weights."""
    return jnp.concatenate([points, jnp.ones_like(points[..., :1])], axis=-1) * weights[..., None]


def _pulled(
    points: Float[Array, "L N D"], weights: Float[Array, "L N"], sums: Float[Array, "L N D+1"]
) -> Float[Array, "L N D"]:
    """`2 w_i sum_j s_ij w_j (x_i - y_j)`, from the sums over j of `s_ij w_j y_j` and `s_ij w_j`."""
    return 2.0 * weights[..., None] * (points * sums[..., -1:] - sums[..., :-1])


def _dense_mean(function: Callable[[Array], Array], x: Cloud, y: Cloud | None) -> Float[Array, "L"]:
    """As `_mean`, all pairs at once."""
    (points, weights), (others, other_weights) = x, y or x
    return _weighted_sum(function(_squared_distance(points, others)), weights, other_weights)


def _squared_distance(x: Float[Array, "L N D"], y: Float[Array, "L M D"]) -> Float[Array, "L N M"]:
    return numerics.squared_distance(x[:, :, None], y[:, :, None])[:, 0]


def _weighted_sum(
    pairs: Float[Array, "L N M"], rows: Float[Array, "L N"], columns: Float[Array, "L M"]
) -> Float[Array, "L"]:
    return jnp.einsum("lnm,ln,lm->l", pairs, rows, columns, precision=numerics.PRECISION)
