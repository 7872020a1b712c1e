"""Bidirectional conditional transport, AA-CT (Zhang et al. 2021, Eq. 4; Zheng & Zhou 2020).

Two implementations of one number. "dense" builds the `[N, M]` matrices and is the oracle.
"blockwise" (`transport_readout.py`) makes no such matrix, and is faster as well, unless there are
few tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from align_jax import numerics, placement
from align_jax.divergences import blocks, transport_readout
from align_jax.divergences.transport_readout import MASKED, cost_factors

COSTS = ("cosine", "squared_euclidean")
TRANSPORT_IMPLEMENTATIONS = ("auto", *blocks.IMPLEMENTATIONS)
# "auto" is "dense" for up to so many tokens; docs/performance.md has the times.
DENSE_TOKENS = 32
# On a TPU, where XLA expects 3.0 and 4.0 million cycles with 128 tokens and 7.7 and 7.2 with 512.
# On GPU and TPU nothing has been measured.
DENSE_TOKENS_ON_TPU = 128

MeanCosts = Callable[..., tuple[Array, Array]]


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
    implementation: str = "auto",
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
      implementation: "dense" (all pairs at once, the oracle), "blockwise" (memory linear in the
        number of tokens; the backward pass makes each block again), or "auto": "dense" for up to
        32 tokens (on a TPU, 128), "blockwise" otherwise. Derivatives in forward mode (`jax.jvp`)
        are for "dense" alone, JAX refuses them for "blockwise"; a derivative of the gradient is
        right for both.

    Returns:
      One value per sample and head, in units of the cost (in `[0, 2]` for the cosine); 0 for a
      sample without queries or keys.

    Raises:
      ValueError: for a wrong rank, an empty axis, shapes that do not fit, an unknown cost or
        implementation, or rho outside `[0, 1]`.
      TypeError: for vectors that are not floating point or masks that are not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> same = jnp.ones((1, 3, 2, 4))
      >>> opposite = -same
      >>> conditional_transport(same, opposite, same, same).tolist()
      [[2.0, 2.0]]
    """
    pairs = (
        ("features", "B N H F", query_features, key_features),
        ("navigation", "B N H G", query_navigation, key_navigation),
    )
    for kind, axes, query, key in pairs:
        names = (f"query_{kind}", f"key_{kind}")
        numerics.check_clouds(query, key, query_mask, key_mask, names=names, axes=axes)
    for side, features, navigation in zip(
        ("query", "key"), pairs[0][2:], pairs[1][2:], strict=True
    ):
        if features.shape[:3] != navigation.shape[:3]:
            raise ValueError(
                f"{side}_features and {side}_navigation must agree in their first three axes "
                f"(batch, tokens, heads), got {features.shape} and {navigation.shape}."
            )
    numerics.check_choice("cost", cost, COSTS)
    numerics.check_fraction("rho", rho)
    numerics.check_choice("implementation", implementation, TRANSPORT_IMPLEMENTATIONS)

    query_features, query_valid = numerics.prepare(query_features, query_mask)
    key_features, key_valid = numerics.prepare(key_features, key_mask)
    query_navigation, _ = numerics.prepare(query_navigation, query_mask)
    key_navigation, _ = numerics.prepare(key_navigation, key_mask)
    query_features, key_features = numerics.cost_vectors(
        query_features, key_features, cost, query_valid, key_valid
    )

    clouds = (query_features, key_features, query_navigation, key_navigation)
    if implementation == "auto":
        tokens = max(query_features.shape[1], key_features.shape[1])
        forms = [_dense if tokens <= n else _streamed for n in (DENSE_TOKENS, DENSE_TOKENS_ON_TPU)]
    else:
        forms = [_dense if implementation == "dense" else _streamed] * 2
    forward, backward = _mean_costs(*forms, cost, *clouds, query_valid, key_valid)
    both = jnp.any(query_valid, axis=1) & jnp.any(key_valid, axis=1)
    return jnp.where(both[:, None], rho * forward + (1.0 - rho) * backward, 0.0)


# Behind jax.jit, so that it is traced once for all layers of the same shapes.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _mean_costs(form: MeanCosts, on_tpu: MeanCosts, cost: str, *arrays: Array) -> Any:
    """Mean cost of the query-to-key and of the key-to-query plan, in the form for the platform."""
    form, on_tpu = (functools.partial(function, cost=cost) for function in (form, on_tpu))
    if form.func is on_tpu.func:
        return form(*arrays)
    return placement.by_platform(form, form, *arrays, on_tpu=on_tpu)


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
    scores = numerics.products(query_navigation, key_navigation)
    costs = numerics.vector_costs(query_features, key_features, cost)
    to_keys = jax.nn.softmax(jnp.where(key_mask[:, None, None, :], scores, MASKED), axis=-1)
    to_queries = jax.nn.softmax(jnp.where(query_mask[:, None, :, None], scores, MASKED), axis=-2)
    forward = jnp.sum(to_keys * costs, axis=-1)
    backward = jnp.sum(to_queries * costs, axis=-2)
    return (
        numerics.masked_mean(forward, query_mask[:, None, :], axis=-1),
        numerics.masked_mean(backward, key_mask[:, None, :], axis=-1),
    )


def _streamed(*arrays: Array, cost: str) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
    """Equal to `_dense` of the same arguments, in memory linear in the number of tokens."""
    *clouds, query_mask, key_mask = arrays
    batch, _, heads, _ = clouds[0].shape
    query, key, query_navigation, key_navigation = map(blocks.per_head, clouds)
    query_mask, key_mask = (jnp.repeat(mask, heads, axis=0) for mask in (query_mask, key_mask))
    factors = cost_factors(query, key, query_mask, key_mask, cost)
    forward, backward = transport_readout.mean_costs(*factors, query_navigation, key_navigation)
    return (
        numerics.masked_mean(forward, query_mask, axis=-1).reshape(batch, heads),
        numerics.masked_mean(backward, key_mask, axis=-1).reshape(batch, heads),
    )
