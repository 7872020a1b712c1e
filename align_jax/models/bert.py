"""BERT and RoBERTa encoders, in any size (MiniLM is a small BERT).

Sources: Devlin et al., "BERT", 2019 (arXiv 1810.04805); Liu et al., "RoBERTa", 2019 (arXiv
1907.11692); Wang et al., "MiniLM", 2020 (arXiv 2002.10957). Computes what the PyTorch models in
`transformers` compute, so that their weights can be loaded (`align_jax.pretrained`).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from align_jax.models.stack import STACK, scanned
from align_jax.models.transformer import (
    Embeddings,
    EncoderConfig,
    check_inputs,
    dense,
    layer_class,
)
from align_jax.numerics import check_choice

FAMILIES = ("bert", "roberta")


@dataclasses.dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """A BERT or RoBERTa encoder; the defaults are BERT-base's, uncased.

    Attributes:
        family: "bert" counts positions from 0 to N - 1; "roberta" counts the tokens alone, from
            `pad_token_id + 1` on, and puts padding at position `pad_token_id`.

    The other attributes are `EncoderConfig`'s. With `scan_layers` the parameters of all layers are
    one stack named "layers", with a leading axis for the layer (`stack_layers`, `unstack_layers`).

    Raises:
        ValueError: a value is out of range; the message names it.

    Example:
        >>> BertConfig(hidden_size=384, layers=6, mlp_size=1536).heads
        12
    """

    family: str = "bert"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("BertConfig.family", self.family, FAMILIES)
        if self.scan_layers and self.alignment is not None and self.alignment.layers is not None:
            raise ValueError(
                f"BertConfig.scan_layers is True and alignment.layers {self.alignment.layers}; a "
                f"scan has one path for all of its layers, which patterns cannot tell apart. Set "
                f"scan_layers=False, or align every layer (layers=None)."
            )
        if self.max_length < 1:
            raise ValueError(
                f"BertConfig.max_positions is {self.max_positions}; with family 'roberta' it must "
                f"exceed pad_token_id + 1 = {self.pad_token_id + 1}, where positions begin."
            )

    @property
    def max_length(self) -> int:
        """The longest sequence that has positions (N at most)."""
        offset = self.pad_token_id + 1 if self.family == "roberta" else 0
        return self.max_positions - offset


class BertEncoder(nn.Module):
    """Tokens in, hidden states out.

    Attributes:
        config: sizes and options.
        pooler: whether to pool too: dense layer and tanh on the first token's state.

    Example:
        >>> import jax
        >>> model = BertEncoder(BertConfig(vocab_size=9, hidden_size=8, layers=1, heads=2))
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> hidden, pooled = model.apply(model.init(jax.random.key(0), tokens), tokens)
        >>> hidden.shape, pooled.shape
        ((1, 3, 8), (1, 8))
    """

    config: BertConfig
    pooler: bool = True

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B N"],
        attention_mask: Int[Array, "B N"] | Bool[Array, "B N"] | None = None,
        token_type_ids: Int[Array, "B N"] | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B N E"], Float[Array, "B E"] | None]:
        """Encodes a batch of token sequences.

        Args:
            input_ids: tokens, padded at the end.
            attention_mask: 1 for tokens, 0 for padding; None for no padding.
            token_type_ids: the segment of each token; None for all 0.
            deterministic: False in training: dropout is on and needs the "dropout" RNG.

        Returns:
            The last hidden states, and the pooled first token (None without a pooler).

        Raises:
            ValueError: shapes disagree, a sequence is longer than the model's positions, an id has
                no embedding, or the mask is not of 0 and 1. Under `jax.jit` numbers cannot be
                refused: an id without embedding makes the hidden states NaN.
            TypeError: ids that are no integers.
        """
        config = self.config
        valid = check_inputs(config, input_ids, attention_mask, token_type_ids)
        embed = BertEmbeddings(config, config.hidden_size, name="embeddings")
        tokens = embed(
            input_ids, positions(config, input_ids), token_type_ids, deterministic=deterministic
        )
        layer = layer_class(config)
        if config.scan_layers:
            stack = layer(config, name=STACK)
            tokens = scanned(stack, config.layers, tokens, valid, deterministic)
        else:
            for number in range(config.layers):
                tokens = layer(config, name=f"layer_{number}")(tokens, valid, deterministic)
        if not self.pooler:
            return tokens, None
        return tokens, jnp.tanh(dense(config, config.hidden_size, "pooler")(tokens[:, 0]))


class BertEmbeddings(Embeddings):
    """As `Embeddings`; RoBERTa's position of padding is not trained, as in PyTorch."""

    config: BertConfig

    def _positions(self, position_ids: Array) -> Array:
        embedded = super()._positions(position_ids)
        if self.config.family == "bert":
            return embedded
        padding = (position_ids == self.config.pad_token_id)[..., None]
        return jnp.where(padding, lax.stop_gradient(embedded), embedded)


def positions(config: BertConfig, input_ids: Int[Array, "B N"]) -> Int[Array, "#B N"]:
    """The row of the position embedding for each token."""
    if config.family == "bert":
        return jnp.arange(input_ids.shape[1])[None]
    tokens = (input_ids != config.pad_token_id).astype(jnp.int32)
    return jnp.cumsum(tokens, axis=1) * tokens + config.pad_token_id
