"""BERT and RoBERTa encoders, in any size (MiniLM is a small BERT).

Sources: Devlin et al., "BERT", 2019 (arXiv 1810.04805); Liu et al., "RoBERTa", 2019 (arXiv
1907.11692); Wang et al., "MiniLM", 2020 (arXiv 2002.10957). Computes what the PyTorch models in
`transformers` compute, so that their weights can be loaded (`align_jax.pretrained`).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from align_jax.models.stack import STACK, scanned
from align_jax.models.transformer import Embeddings, Encoder, EncoderConfig, layer_class
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


class BertEncoder(Encoder):
    """Tokens in, hidden states out; attributes and call are `Encoder`'s.

    Example:
        >>> import jax
        >>> model = BertEncoder(BertConfig(vocab_size=9, hidden_size=8, layers=1, heads=2))
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> hidden, pooled = model.apply(model.init(jax.random.key(0), tokens), tokens)
        >>> hidden.shape, pooled.shape
        ((1, 3, 8), (1, 8))
    """

    config: BertConfig

    def _embedded(
        self, input_ids: Array, token_type_ids: Array | None, deterministic: bool
    ) -> Array:
        embed = BertEmbeddings(self.config, self.config.hidden_size, name="embeddings")
        return embed(input_ids, token_type_ids, deterministic=deterministic)

    def _layers(self, tokens: Array, valid: Array, deterministic: bool) -> Array:
        config, layer = self.config, layer_class(self.config)
        if config.scan_layers:
            stack = layer(config, name=STACK)
            return scanned(stack, config.layers, tokens, valid, deterministic)
        for number in range(config.layers):
            tokens = layer(config, name=f"layer_{number}")(tokens, valid, deterministic)
        return tokens


class BertEmbeddings(Embeddings):
    """As `Embeddings`; RoBERTa's position of padding is not trained, as in PyTorch."""

    config: BertConfig

    def _positions(self, input_ids: Array) -> Array:
        ids = positions(self.config, input_ids)
        embedded = self._table(self.config.max_positions, "position")(ids)
        if self.config.family == "bert":
            return embedded
        padding = (ids == self.config.pad_token_id)[..., None]
        return jnp.where(padding, lax.stop_gradient(embedded), embedded)


def positions(config: BertConfig, input_ids: Int[Array, "B N"]) -> Int[Array, "#B N"]:
    """The row of the position embedding for each token."""
    if config.family == "bert":
        return jnp.arange(input_ids.shape[1])[None]
    tokens = (input_ids != config.pad_token_id).astype(jnp.int32)
    return jnp.cumsum(tokens, axis=1) * tokens + config.pad_token_id
