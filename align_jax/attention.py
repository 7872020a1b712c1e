"""Attention that sows its alignment: a drop-in for flax's multi-head attention."""

import contextlib
import dataclasses
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
      alignment: what to align, and how; None is flax's attention without any addition.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attention = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig("gan"))
      >>> x = jnp.ones((3, 5, 8))
      >>> params = attention.init(jax.random.key(0), x)
      >>> sorted(params["params"])
      ['alignment', 'key', 'out', 'query', 'value']
    """

    alignment: AlignmentConfig | None = None

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
          query_mask: True for the queries that the alignment counts; None derives it from `mask`,
            see `token_masks`.
          key_mask: likewise for the keys.
          **kwargs: as in flax: `mask`, `deterministic`, `dropout_rng`, `sow_weights`, `inputs_kv`.

        Returns:
          What flax's attention returns.
        """
        attend = functools.partial(super().__call__, inputs_q, inputs_k, inputs_v, **kwargs)
        if self.alignment is None:
            return attend()
        with observe(self) as observation:
            outputs = attend()
        sow_alignment(
            self.alignment,
            observation,
            is_self_attention(inputs_q, inputs_k, kwargs.get("inputs_kv")),
            query_mask=query_mask,
            key_mask=key_mask,
        )
        return outputs


def is_self_attention(
    inputs_q: Any = None, inputs_k: Any = None, inputs_kv: Any = None, **_: Any
) -> bool:
    """Whether flax's attention takes queries and keys from one array, by its arguments."""
    keys = inputs_kv if inputs_k is None else inputs_k
    return keys is None or keys is inputs_q


@dataclasses.dataclass
class Observation:
    """What one call of an attention module gave to its `attention_fn`."""

    query: Array | None = None
    key: Array | None = None
    mask: Array | None = None
    handled: bool = False


@contextlib.contextmanager
def observe(module: nn.MultiHeadDotProductAttention) -> Iterator[Observation]:
    """Watches what the module hands to its `attention_fn`, in this call alone.

    That is after everything the module does to its projections (normalisation, for one), and with
    the mask that it really uses. The wrapper keeps the function's signature, because flax passes
    an `attention_fn` only the keyword arguments that its signature names.
    """
    original = module.attention_fn
    observation = Observation()
    outer = getattr(original, "observation", None)
    if outer is not None:
        outer.handled = True

    @functools.wraps(original)
    def attention_fn(query: Array, key: Array, *args: Any, **kwargs: Any) -> Array:
        observation.query, observation.key = query, key
        observation.mask = kwargs.get("mask")
        return original(query, key, *args, **kwargs)

    attention_fn.observation = observation  # type: ignore[attr-defined]
    # Modules are frozen after construction; this one is private to the running call.
    object.__setattr__(module, "attention_fn", attention_fn)
    try:
        yield observation
    finally:
        object.__setattr__(module, "attention_fn", original)


def sow_alignment(
    config: AlignmentConfig,
    observation: Observation,
    self_attention: bool,
    *,
    query_mask: Array | None = None,
    key_mask: Array | None = None,
) -> None:
    """Runs `Alignment` on an observed call, inside the attention module's scope.

    Args:
      config: what to align, and how.
      observation: from `observe`.
      self_attention: whether queries and keys are projections of the same tokens.
      query_mask: overrides what the attention mask says.
      key_mask: overrides what the attention mask says.
    """
    query, key = observation.query, observation.key
    if query is None or key is None:
        raise ValueError("The attention module did not call its attention_fn: nothing to align.")
    if observation.mask is not None and (query_mask is None or key_mask is None):
        queries, keys = query.shape[-3], key.shape[-3]
        derived = token_masks(observation.mask, queries, keys, self_attention=self_attention)
        if query_mask is None:
            query_mask = jnp.broadcast_to(derived[0], (*query.shape[:-3], queries))
        if key_mask is None:
            key_mask = jnp.broadcast_to(derived[1], (*key.shape[:-3], keys))
    Alignment(config, name=NAME)(query, key, query_mask=query_mask, key_mask=key_mask)
