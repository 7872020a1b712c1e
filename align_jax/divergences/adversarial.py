"""Adversarial alignment, AA-GAN (Zhang et al. 2021, arXiv 2110.12567, Eq. 2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from align_jax import numerics


def adversarial(
    query_logits: Float[Array, "B N H"],
    key_logits: Float[Array, "B M H"],
    *,
    query_mask: Bool[Array, "B N"] | None = None,
    key_mask: Bool[Array, "B M"] | None = None,
) -> Float[Array, "B H"]:
    """The GAN objective between queries and keys: `E_q[log D(q)] + E_k[log(1 - D(k))]`.

    The discriminator maximises it, the projections that make the queries and keys minimise it. At
    the best discriminator it is `2 * JS(Q, K) - 2 log 2`, and `-2 log 2` when the two agree.

    Args:
      query_logits: the discriminator's logits for the queries, `D = sigmoid(logits)`.
      key_logits: its logits for the keys.
      query_mask: True for the queries that take part; None for all.
      key_mask: True for the keys that take part; None for all.

    Returns:
      One value per sample and head, in nats, at most 0; 0 for a sample without queries or keys.

    Raises:
      ValueError: for a wrong rank, an empty axis, or shapes that do not fit together.
      TypeError: for logits that are not floating point or masks that are not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> value = adversarial(jnp.zeros((1, 4, 1)), jnp.zeros((1, 6, 1)))
      >>> round(value.item(), 4)
      -1.3863
    """
    names = ("query_logits", "key_logits")
    numerics.check_clouds(query_logits, key_logits, query_mask, key_mask, names=names, axes="B N H")
    query_logits, query_mask = numerics.prepare(query_logits, query_mask)
    key_logits, key_mask = numerics.prepare(key_logits, key_mask)
    real = numerics.masked_mean(jax.nn.log_sigmoid(query_logits), query_mask[..., None], axis=1)
    fake = numerics.masked_mean(jax.nn.log_sigmoid(-key_logits), key_mask[..., None], axis=1)
    both = jnp.any(query_mask, axis=1) & jnp.any(key_mask, axis=1)
    return jnp.where(both[:, None], real + fake, 0.0)
