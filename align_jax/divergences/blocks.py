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

Tree = TypeVar("Tree")

# Points [L, N, D] and their probabilities [L, N].
Cloud = tuple[Array, Array]


def in_blocks(
    function: Callable[..., Any], heads: int, rows: int, columns: int, *arrays: Any
) -> Any:
    """Calls `function(shape, *arrays)` with a block's heads and rows, as the platform has them.

    Args:
      function: sums over blocks of `shape`; of the same result for every shape.
      heads: L, of all samples.
      rows: N.
      columns: M, all of which are in a block.
      *arrays: trees of arrays.
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
    """How many heads, and how many rows of each, make a block with all the columns.

    Args:
      heads: L, of all samples; the first result divides it.
      rows: N.
      columns: M.
      size: pairs in a block, if it is no larger than its rows demand.
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
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, blocks * size - x.shape[1])
    x = jnp.pad(x, padding)
    x = x.reshape(x.shape[0], blocks, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)


def join(x: Array, length: int) -> Array:
    """The inverse of `split` for `[blocks, L, size, ...]`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def mean_over_pairs(
    function: Callable[[Array], Array],
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    query_mask: Bool[Array, "B N"],
    key_mask: Bool[Array, "B M"],
    implementation: str,
) -> tuple[Float[Array, "B H"], Float[Array, "B H"], Float[Array, "B H"]]:
    """The mean of a function of the squared distance, over all pairs of tokens that take part.

    Args:
      function: acts entry by entry.
      query: float32, padding zeroed.
      key: likewise.
      query_mask: the queries that take part.
      key_mask: the keys that do.
      implementation: "dense", or "blockwise": equal, in memory linear in the number of tokens.

    Returns:
      Of pairs of a query and a key, of two queries, and of two keys; a point is a pair with itself.
    """
    batch, _, heads, _ = query.shape
    mean = _over_all_pairs if implementation == "dense" else _over_blocks

    def per_sample(*masked: tuple[Array, Array]) -> Float[Array, "B H"]:
        # Each on its own: two keys may be near each other, and both far from all queries.
        (x, y), masks = zip(*masked, strict=True)
        weights = (jnp.repeat(numerics.token_weights(mask), heads, axis=0) for mask in masks)
        clouds = zip(map(per_head, numerics.centred(x, y, *masks)), weights, strict=True)
        return mean(function, *clouds).reshape(batch, heads)

    queries, keys = (query, query_mask), (key, key_mask)
    return per_sample(queries, keys), per_sample(queries, queries), per_sample(keys, keys)


def _over_blocks(function: Callable[[Array], Array], x: Cloud, y: Cloud) -> Float[Array, "L"]:
    def over_blocks(shape: tuple[int, int], x: Cloud, y: Cloud) -> Array:
        group, size = shape

        def one_group(x_points: Array, x_weights: Array, *y: Array) -> Array:
            @jax.checkpoint
            def block(total: Array, part: Cloud) -> tuple[Array, None]:
                return total + _over_all_pairs(function, part, (y[0], y[1])), None

            parts = (split(x_points, size), split(x_weights, size))
            return jax.lax.scan(block, jnp.zeros(group, jnp.float32), parts)[0]

        return map_heads(one_group, group, *x, *y)

    return in_blocks(over_blocks, *x[1].shape, y[1].shape[1], x, y)


def _over_all_pairs(function: Callable[[Array], Array], x: Cloud, y: Cloud) -> Float[Array, "L"]:
    (x_points, x_weights), (y_points, y_weights) = x, y
    distance = numerics.squared_distance(x_points[:, :, None], y_points[:, :, None])[:, 0]
    weights = x_weights, y_weights
    return jnp.einsum("lnm,ln,lm->l", function(distance), *weights, precision=numerics.PRECISION)
