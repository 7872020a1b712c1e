"""What BERT, RoBERTa and ALBERT share: their sizes, their embeddings and their layer.

All three are encoders with post-norm layers: attention, then an MLP, each added to its input and
normalised after the addition. They differ in how tokens are embedded and in which layers share
parameters; that is in `bert.py` and `albert.py`.

Sources: Vaswani et al., "Attention Is All You Need", 2017 (arXiv 1706.03762); Devlin et al.,
"BERT", 2019 (arXiv 1810.04805).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from align_jax import placement
from align_jax.config import AlignmentConfig
from align_jax.models import settings
from align_jax.models.attention_function import multi_head_attention
from align_jax.models.dropout import Dropout
from align_jax.models.embedding import Embed
from align_jax.models.flat_dot_general import flat_dot_general
from align_jax.models.layer_norm import LayerNorm
from align_jax.numerics import check_indices, first_wrong


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and options that every text encoder has; the defaults are BERT-base's, uncased.

    Attributes:
        vocab_size: number of tokens in the vocabulary.
        hidden_size: width of a token (E); a multiple of `heads`.
        layers: number of layers applied (L).
        heads: attention heads per layer (H).
        mlp_size: width of the hidden layer of each MLP.
        activation: of the MLP; a name out of `ACTIVATIONS`.
        max_positions: number of rows of the position embedding.
        token_types: number of token types (segments).
        pad_token_id: the padding token; its embedding is not trained, as in PyTorch.
        layer_norm_epsilon: added to the variance in each LayerNorm.
        initializer_range: standard deviation of freshly made weights.
        dropout: probability of dropping an activation after embedding, attention and MLP.
        attention_dropout: probability of dropping an attention weight.
        classifier_dropout: probability of dropping an activation before a head's last layer; None
            takes `dropout`.
        dtype: dtype of the computation; parameters and logits stay float32.
        remat: compute each layer's activations again in the backward pass instead of keeping them:
            less memory, about a third more time.
        scan_layers: compile one layer and repeat it by `nn.scan`, so that compiling takes about as
            long for many layers as for one. Same outputs; see the model on its parameters.
        alignment: what to align in each attention; None aligns nothing.

    Raises:
        ValueError: a value is out of range; the message names it.

    Example:
        >>> from align_jax.models import BertConfig
        >>> isinstance(BertConfig(heads=4), EncoderConfig)
        True
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    mlp_size: int = 3072
    activation: str = "gelu"
    max_positions: int = 512
    token_types: int = 2
    pad_token_id: int = 0
    layer_norm_epsilon: float = 1e-12
    initializer_range: float = 0.02
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    dtype: str = "float32"
    remat: bool = False
    scan_layers: bool = False
    alignment: AlignmentConfig | None = None

    counts: ClassVar[tuple[str, ...]] = (
        "vocab_size", "hidden_size", "layers", "heads", "mlp_size", "max_positions", "token_types",
    )  # fmt: skip

    def __post_init__(self) -> None:
        settings.name_alignment(self)
        kind = type(self).__name__
        settings.check_counts(self, dict.fromkeys(self.counts, 1))
        settings.check_transformer(self)
        if not isinstance(self.pad_token_id, int) or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"{kind}.pad_token_id is {self.pad_token_id!r}; expected a token in "
                f"[0, {self.vocab_size}), the vocabulary."
            )
        own = ["classifier_dropout"] if self.classifier_dropout is not None else []
        settings.check_probabilities(self, ["dropout", "attention_dropout", *own])
        for name in ("layer_norm_epsilon", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{kind}.{name} is {getattr(self, name)!r}; expected above 0.")
        # Without a hint: a name that is near may be another function's.
        if self.activation not in tuple(ACTIVATIONS):
            raise ValueError(
                f"{kind}.activation must be one of {', '.join(ACTIVATIONS)}, got "
                f"{self.activation!r}. GELU is 'gelu' in its exact form (by erf), 'gelu_new' in "
                "its tanh form."
            )

    @property
    def head_dropout(self) -> float:
        """Dropout before a head's last layer: `classifier_dropout`, or else `dropout`."""
        return self.dropout if self.classifier_dropout is None else self.classifier_dropout

    @property
    def max_length(self) -> int:
        """The longest sequence that has positions (N at most)."""
        return self.max_positions


def exact_gelu(x: Array) -> Array:
    """GELU, x times the standard normal's distribution function at x, as PyTorch's default.

    `jax.nn.gelu(approximate=False)` is the same function through erfc, which takes about four
    times as long on a CPU (12.6 against 2.0 ms for 3072 x 1536 values). In float32 whatever the
    dtype, because 1 + erf cancels for negative x.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


# The names that checkpoints' config.json files use.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    **dict.fromkeys(("gelu", "gelu_python"), exact_gelu),
    # The tanh form, up to 5e-4 away from it.
    **dict.fromkeys(
        ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"), nn.gelu
    ),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}


def dense(config: EncoderConfig, features: int, name: str, dtype: Any = None) -> nn.Dense:
    """A Dense layer with the encoder's initialisation, computing in its dtype."""
    return nn.Dense(
        features,
        dtype=jnp.dtype(config.dtype) if dtype is None else dtype,
        kernel_init=nn.initializers.normal(config.initializer_range),
        dot_general=flat_dot_general,
        name=name,
    )


def layer_norm(config: EncoderConfig, name: str) -> LayerNorm:
    """LayerNorm as these models have it."""
    return LayerNorm(config.layer_norm_epsilon, jnp.dtype(config.dtype), name=name)


class Embeddings(nn.Module):
    """Token, position and type embeddings, added and normalised.

    Attributes:
        config: sizes and options.
        features: width of the embeddings.
    """

    config: EncoderConfig
    features: int

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B N"],
        token_type_ids: Int[Array, "B N"] | None,
        *,
        deterministic: bool,
    ) -> Float[Array, "B N F"]:
        """Embeds tokens; without `token_type_ids` every token has type 0."""
        config = self.config
        table = self._table(config.vocab_size, "word")
        words = placement.look_up(table, input_ids, self.features)
        # PyTorch's padding_idx: the padding token's embedding has no gradient.
        padding = (input_ids == config.pad_token_id)[..., None]
        words = jnp.where(padding, jax.lax.stop_gradient(words), words)

        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, 1), jnp.int32)
        positions = self._positions(input_ids)
        types = self._table(config.token_types, "token_type")(token_type_ids)
        embedded = layer_norm(config, "norm")(words + types + positions)
        return Dropout(config.dropout, deterministic=deterministic)(embedded)

    def _positions(self, input_ids: Array) -> Array:
        ids = jnp.arange(input_ids.shape[1])[None]
        return self._table(self.config.max_positions, "position")(ids)

    def _table(self, rows: int, name: str) -> Embed:
        return Embed(
            rows,
            self.features,
            dtype=jnp.dtype(self.config.dtype),
            embedding_init=nn.initializers.normal(self.config.initializer_range),
            name=name,
        )


class TransformerLayer(nn.Module):
    """One post-norm layer: attention, then an MLP."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B N E"], valid: Bool[Array, "B N"], deterministic: bool
    ) -> Float[Array, "B N E"]:
        """Applies the layer; hidden states of padding mean nothing.

        No token attends to padding, where `valid` is False, and it takes no part in the alignment.
        """
        config = self.config
        dropout = Dropout(config.dropout, deterministic=deterministic)
        initializer = nn.initializers.normal(config.initializer_range)
        attention = multi_head_attention(
            config, deterministic, kernel_init=initializer, name="attention"
        )
        attended = attention(tokens, mask=valid[:, None, None, :], query_mask=valid, key_mask=valid)
        tokens = layer_norm(config, "attention_norm")(tokens + dropout(attended))

        hidden = ACTIVATIONS[config.activation](dense(config, config.mlp_size, "mlp_in")(tokens))
        hidden = dropout(dense(config, config.hidden_size, "mlp_out")(hidden))
        return layer_norm(config, "mlp_norm")(tokens + hidden)


def layer_class(config: EncoderConfig) -> type[nn.Module]:
    """`TransformerLayer`, with its activations computed again in the backward pass if asked for."""
    if not config.remat:
        return TransformerLayer
    # Arguments are counted with self as 0: `deterministic` must stay a Python bool. A loop's body
    # cannot be merged with what is outside, so there nothing needs to keep XLA from it.
    return nn.remat(TransformerLayer, static_argnums=(3,), prevent_cse=not config.scan_layers)


class Encoder(nn.Module):
    """Tokens in, hidden states out; each kind says how tokens are `_embedded`, and its `_layers`.

    Attributes:
        config: sizes and options.
        pooler: whether to pool too: dense layer and tanh on the first token's state.
    """

    config: EncoderConfig
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
        tokens = self._embedded(input_ids, token_type_ids, deterministic)
        tokens = self._layers(tokens, valid, deterministic)
        if not self.pooler:
            return tokens, None
        return tokens, jnp.tanh(dense(config, config.hidden_size, "pooler")(tokens[:, 0]))


def check_inputs(
    config: EncoderConfig, input_ids: Array, attention_mask: Array | None, types: Array | None
) -> Bool[Array, "B N"]:
    """Checks shapes and, unless they are traced, ids; returns which positions hold tokens."""
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids must be [B, N], N above 0, got shape {input_ids.shape}.")
    if input_ids.shape[1] > config.max_length:
        raise ValueError(
            f"input_ids holds {input_ids.shape[1]} tokens per sequence; this model has positions "
            f"for {config.max_length}. Truncate the texts (the tokenizer's max_length)."
        )
    for name, array in (("attention_mask", attention_mask), ("token_type_ids", types)):
        if array is not None and array.shape != input_ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids, {input_ids.shape}, got {array.shape}."
            )
    check_indices(
        "input_ids", input_ids, config.vocab_size, "embeddings",
        advice="Do the tokenizer and the model belong together (vocab_size)?",
    )  # fmt: skip
    if types is not None:
        check_indices(
            "token_type_ids", types, config.token_types, "types",
            advice="A model with one type, as RoBERTa is, takes none: leave token_type_ids out.",
        )  # fmt: skip
    if attention_mask is None:
        return jnp.ones(input_ids.shape, bool)
    place = first_wrong(attention_mask, lambda numbers: (numbers != 0) & (numbers != 1))
    if place is not None:
        raise ValueError(
            f"attention_mask holds {np.asarray(attention_mask)[place]}; expected 1 for tokens and "
            f"0 for padding. It is not added to the scores."
        )
    return attention_mask.astype(bool)
