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
    """Attention with a model's settings.

    Args:
        config: has `heads`, `dtype`, `attention_dropout` and `alignment`.
        deterministic: False in training.
        **options: more of the module's attributes, such as its name.
    """
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

    Args:
        query: projected queries.
        key: projected keys.
        value: projected values.
        mask: bool, broadcastable to [B, H, N, M]; True where attention is allowed.
        dropout_rng: key of the dropout.
        dropout_rate: probability of dropping an attention weight, each one on its own.
        deterministic: no dropout; flax's modules say so in training too, if their rate is 0.
        dtype: dtype of the computation; None takes the inputs'.
        precision: of the matrix products, see `jax.lax.Precision`.
        force_fp32_for_softmax: softmax in float32; `jax.nn`'s function always does that.
        module: the module that sows the attention weights; None sows nothing.
        training: whether a backward pass follows, which decides what is faster.

    Returns:
        The attended values.
    """
    dropping = not deterministic and dropout_rate > 0.0
    # Forward and backward, XLA on a CPU takes 94 ms for flax's and 125 ms for jax.nn's (32 x 96
    # tokens, 12 heads of 32, float32, 2 cores); forward alone 52 and 25 ms. For a TPU v5e it
    # expects the same of both: 0.646 and 0.633 million cycles (32 x 128, with the projections).
    if dropping or training or module is not None or precision is not None:
        weights = nn.dot_product_attention_weights(
            query,
            key,
            mask=mask,
            deterministic=True,
            dtype=dtype,
            precision=precision,
            force_fp32_for_softmax=force_fp32_for_softmax,
            module=module,
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
