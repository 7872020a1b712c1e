"""Attention that sows its alignment: a drop-in for flax's multi-head attention."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from align_jax.alignment import NAME, Alignment
from align_jax.config import AlignmentConfig
from align_jax.masks import token_masks


class MultiHeadDotProductAttention(nn.MultiHeadDotProductAttention):
    """`flax.linen.MultiHeadDotProductAttention` that sows the alignment of its queries and keys.

    Parameters' names and shapes, outputs, dropout and every other option are flax's own, bit for
    bit: change the import and add `alignment=...`. See `Alignment` for what is sown, and when.

    Attributes:
      alignment: what to align, and how, or a method's name; None is flax's attention as
        it is.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attention = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig("gan"))
      >>> x = jnp.ones((3, 5, 8))
      >>> params = jax.jit(attention.init)(jax.random.key(0), x)
      >>> sorted(params["params"])
      ['alignment', 'key', 'out', 'query', 'value']
    """

    alignment: AlignmentConfig | str | None = None

    @nn.compact
    def __call__(  # type: ignore[override]
        self,
        inputs_q: Float[Array, "*batch N E"],
        inputs_k: Float[Array, "*batch M E"] | None = None,
        inputs_v: Float[Array, "*batch M E"] | None = None,
        *,
        query_mask: Bool[Array, "*batch N"] | None = None,
        key_mask: Bool[Array, "*batch M"] | None = None,
        **kwargs: Any,
    ) -> Float[Array, "*batch N E"]:
        """Applies attention.

        It is self-attention, whose padded queries are the padded keys, if keys are left out or the
        very array of the queries. Under `nn.remat` or `nn.jit` of this module two arguments are
        never the same array: leave the keys out there, or give `query_mask`.

        Args:
          inputs_q: inputs of the queries.
          inputs_k: inputs of the keys; None for self-attention.
          inputs_v: inputs of the values; None for the same as the keys.
          query_mask, key_mask: True for the tokens that the alignment counts; None derives them
            from `mask`, see `token_masks`.
          **kwargs: as in flax: `mask`, `deterministic`, `dropout_rng`, `sow_weights`, `inputs_kv`.

        Returns:
          What flax's attention returns.
        """
        attend = functools.partial(super().__call__, inputs_q, inputs_k, inputs_v, **kwargs)
        if self.alignment is None:
            return attend()
        with _observed(self) as seen:
            outputs = attend()
        if not seen:
            raise ValueError("Flax's attention did not call its attention_fn: nothing to align.")
        query, key, mask = seen
        if mask is not None and (query_mask is None or key_mask is None):
            together = is_self_attention(inputs_q, inputs_k, kwargs.get("inputs_kv"))
            derived = token_masks(mask, query.shape[-3], key.shape[-3], self_attention=together)
            query_mask, key_mask = (
                jnp.broadcast_to(taken, x.shape[:-2]) if own is None else own
                for own, taken, x in zip((query_mask, key_mask), derived, (query, key), strict=True)
            )
        Alignment(AlignmentConfig.of(self.alignment), name=NAME)(
            query, key, query_mask=query_mask, key_mask=key_mask
        )
        return outputs


def is_self_attention(inputs_q: Any = None, inputs_k: Any = None, inputs_kv: Any = None) -> bool:
    """Whether flax's attention takes queries and keys from one array, by its arguments."""
    keys = inputs_kv if inputs_k is None else inputs_k
    return keys is None or keys is inputs_q


@contextlib.contextmanager
def _observed(module: nn.MultiHeadDotProductAttention) -> Iterator[list[Any]]:
    """Notes the queries, keys and mask that the module hands to its `attention_fn`, in this call.

    That is after everything the module does to its projections (normalisation, for one). The
    wrapper keeps the function's signature, because flax passes an `attention_fn` only the keyword
    arguments that its signature names.
    """
    original = module.attention_fn
    seen: list[Any] = []

    @functools.wraps(original)
    def attention_fn(query: Array, key: Array, *args: Any, **kwargs: Any) -> Array:
        seen[:] = [query, key, kwargs.get("mask")]
        return original(query, key, *args, **kwargs)

    # Modules are frozen after construction; this one is private to the running call.
    object.__setattr__(module, "attention_fn", attention_fn)
    try:
        yield seen
    finally:
        object.__setattr__(module, "attention_fn", original)
