"""Which tokens take part in an attention, read off its mask."""

import jax.numpy as jnp
from jaxtyping import Array, Bool


def token_masks(
    mask: Array, queries: int, keys: int, *, self_attention: bool
) -> tuple[Bool[Array, "*batch N"], Bool[Array, "*batch M"]]:
    """Which queries and keys take part, read off an attention mask.

    A token takes part if any pair with it is allowed. In self-attention a padding mask often
    blocks the padded keys alone and lets the padded queries run idle; a mask of that form (every
    query that sees anything sees the same keys, or of those the ones not after it) says which
    tokens are padding, so there a token takes part only if it may be both query and key.

    Args:
      mask: `[..., H or 1, N or 1, M or 1]`, or fewer axes; non-zero where attention is allowed, as
        in flax.
      queries: N.
      keys: M.
      self_attention: whether queries and keys are the same tokens.

    Returns:
      `(query_mask, key_mask)`, bool `[..., N]` and `[..., M]`.

    Example:
      >>> import jax.numpy as jnp
      >>> keys_only = jnp.array([True, True, False])[None, None, None, :]
      >>> token_masks(keys_only, 3, 3, self_attention=True)[0].tolist()
      [[True, True, False]]
    """
    mask = mask.reshape((1,) * (3 - mask.ndim) + mask.shape)  # flax broadcasts a plain [N, M] too
    allowed = jnp.any(mask.astype(bool), axis=-3)
    rows, columns = jnp.any(allowed, axis=-1), jnp.any(allowed, axis=-2)
    batch = allowed.shape[:-2]
    rows = jnp.broadcast_to(rows, (*batch, queries))
    columns = jnp.broadcast_to(columns, (*batch, keys))
    if not self_attention or queries != keys:
        return rows, columns
    product = rows[..., :, None] & columns[..., None, :]
    causal = product & jnp.tril(jnp.ones((queries, keys), bool))
    padding = jnp.all(allowed == product, axis=(-2, -1))
    padding |= jnp.all(allowed == causal, axis=(-2, -1))
    either = rows & columns
    padding = padding[..., None]
    return jnp.where(padding, either, rows), jnp.where(padding, either, columns)
