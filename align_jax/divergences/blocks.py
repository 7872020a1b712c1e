"""Streaming over blocks of one cloud's tokens, so that no `[N, M]` matrix need exist as a whole."""

import jax.numpy as jnp
from jaxtyping import Array

# Of a divergence between pairs of tokens: all pairs at once, or a block of rows at a time.
IMPLEMENTATIONS = ("dense", "blockwise")

# Floats in one [B, H, N, M] matrix above which the default turns to blocks, and in one block.
DENSE_LIMIT = 2**25
BLOCK_SIZE = 2**21


def default_implementation(query: Array, key: Array) -> str:
    """How to compute it unless told: "dense" while the matrix of all pairs is small.

    Args:
      query: `[B, N, H, F]`.
      key: `[B, M, H, F]`.
    """
    batch, queries, heads, _ = query.shape
    return "dense" if batch * heads * queries * key.shape[1] <= DENSE_LIMIT else "blockwise"


def block_length(query: Array, key: Array) -> int:
    """How many of the queries `[B, N, H, F]` make a block with all the keys `[B, M, H, F]`."""
    batch, queries, heads, _ = query.shape
    return max(1, min(queries, BLOCK_SIZE // (batch * heads * key.shape[1])))


def split(x: Array, size: int) -> Array:
    """`[B, N, ...]` to `[blocks, B, size, ...]`, the last block filled up with zeros (False)."""
    blocks = -(-x.shape[1] // size)
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, blocks * size - x.shape[1])
    x = jnp.pad(x, padding)
    x = x.reshape(x.shape[0], blocks, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)


def join(x: Array, length: int) -> Array:
    """The inverse of `split` for `[blocks, B, size, ...]`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
