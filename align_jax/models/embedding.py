"""Flax's table of embeddings, which has none for an id out of range."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Embed(nn.Embed):
    """`nn.Embed`, with NaN for every id that is not in the table.

    Flax has NaN for an id beyond the table, but another token's embedding for a negative one, and
    the only one of a table of 1 for any. Where ids are not traced, models refuse them before.
    """

    def __call__(self, inputs: Int[Array, "*shape"]) -> Float[Array, "*shape F"]:
        """Returns the embeddings of the ids."""
        found = super().__call__(jnp.where(inputs < 0, self.num_embeddings, inputs))
        if self.num_embeddings > 1:
            return found
        return jnp.where((inputs == 0)[..., None], found, jnp.nan)
