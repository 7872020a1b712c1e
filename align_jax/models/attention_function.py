"""The attention of the text models and of MCAN: the faster one, in training and out of it."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from align_jax.attention import MultiHeadDotProductAttention
from align_jax.models.dropout import dropped
from align_jax.models.flat_dot_general import flat_dot_general


def multi_head_attention(
    config: Any, deterministic: bool, **options: Any
) -> MultiHeadDotProductAttention:
    """Attention by a configuration with `heads`, `dtype`, `attention_dropout` and `alignment`."""
    return MultiHeadDotProductAttention(
        num_heads=config.heads,
        dtype=jnp.dtype(config.dtype),
        dropout_rate=config.attention_dropout,
        deterministic=deterministic,
        force_fp32_for_softmax=True,
        attention_fn=functools.partial(dot_product_attention, training=not deterministic),
        qkv_dot_general=flat_dot_general,
        out_dot_general=flat_dot_general,
        alignment=config.alignment,
        **options,
    )


def dot_product_attention(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    value: Float[Array, "B M H V"],
    mask: Array | None = None,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    force_fp32_for_softmax: bool = False,
    module: nn.Module | None = None,
    training: bool = False,
) -> Float[Array, "B N H V"]:
    """softmax(QK' / sqrt(D)) V, through `jax.nn.dot_product_attention` where that is faster.

    An `attention_fn` for flax's attention modules. Flax passes only what the signature names, so
    everything that matters is named. `jax.nn`'s function knows neither dropout nor sowing.

    Args beyond flax's:
        training: whether a backward pass follows, which decides what is faster. `deterministic`
            does not say it: flax's modules set it in training too, if their rate is 0.
    """
    dropping = not deterministic and dropout_rate > 0.0
    # Forward and backward, XLA on a CPU takes 94 ms for flax's and 125 ms for jax.nn's (32 x 96
    # tokens, 12 heads of 32, float32, 2 cores); forward alone 52 and 25 ms. For a TPU v5e it
    # expects the same of both: 0.646 and 0.633 million cycles (32 x 128, with the projections).
    if dropping or training or module is not None or precision is not None:
        options = {"dtype": dtype, "precision": precision, "module": module}
        options["force_fp32_for_softmax"] = force_fp32_for_softmax
        weights = nn.dot_product_attention_weights(
            query, key, mask=mask, deterministic=True, **options
        )
        if dropping:
            if dropout_rng is None:
                raise ValueError("Attention dropout needs dropout_rng, a random key.")
            weights = dropped(weights, dropout_rng, dropout_rate)
        return jnp.einsum(
            "...hqk,...khd->...qhd", weights, value.astype(weights.dtype), precision=precision
        )
    if dtype is not None:
        query, key, value = (x.astype(dtype) for x in (query, key, value))
    return jax.nn.dot_product_attention(query, key, value, mask=mask)
