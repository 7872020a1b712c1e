"""Heads on text encoders: sequence classification, multiple choice, span extraction.

Logits are float32 whatever the encoder computes in: softmax and calibration read them.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from align_jax.models.albert import AlbertConfig, AlbertEncoder
from align_jax.models.bert import BertConfig, BertEncoder
from align_jax.models.dropout import Dropout
from align_jax.models.transformer import EncoderConfig, dense
from align_jax.numerics import check_choice, masked_mean

POOLINGS = ("pooler", "mean", "dense")


def text_encoder(config: EncoderConfig, *, pooler: bool, name: str | None = None) -> nn.Module:
    """The encoder that a configuration describes; ValueError for one that describes none."""
    if isinstance(config, BertConfig):
        return BertEncoder(config, pooler=pooler, name=name)
    if isinstance(config, AlbertConfig):
        return AlbertEncoder(config, pooler=pooler, name=name)
    raise ValueError(f"Expected a BertConfig or an AlbertConfig, got {type(config).__name__}.")


class SequenceClassifier(nn.Module):
    """Logits for a whole sequence or pair: classification, or regression with one label.

    Attributes:
        config: the encoder's.
        labels: number of logits.
        pooling: what the logits are read from. "pooler": the encoder's own pooled first token
            (BERT and ALBERT). "dense": the first token through a dense layer and tanh of the
            head's own, with dropout before too (RoBERTa). "mean": the mean of all tokens but
            padding, for encoders whose pooler was never trained.
        label_names: of the classes in order, where they have names. Nothing is computed with them:
            `align_jax.pretrained` reads and writes them with the model.
        problem: likewise, what `transformers` calls "problem_type"; "" is regression for one label,
            single-label classification for several.

    Raises:
        ValueError: for an unknown pooling or no labels.

    Example:
        >>> import jax
        >>> config = BertConfig(vocab_size=9, hidden_size=8, layers=1, heads=2)
        >>> model, tokens = SequenceClassifier(config, labels=3), jnp.ones((2, 3), jnp.int32)
        >>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
        >>> logits.shape
        (2, 3)
    """

    config: EncoderConfig
    labels: int = 2
    pooling: str = "pooler"
    label_names: tuple[str, ...] = ()
    problem: str = ""

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B N"],
        attention_mask: Int[Array, "B N"] | Bool[Array, "B N"] | None = None,
        token_type_ids: Int[Array, "B N"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B labels"]:
        """Logits of each sequence; arguments as the encoder's."""
        check_choice("pooling", self.pooling, POOLINGS)
        if self.labels < 1:
            raise ValueError(f"labels is {self.labels}; expected at least 1.")
        config = self.config
        hidden, pooled = text_encoder(config, pooler=self.pooling == "pooler", name="encoder")(
            input_ids, attention_mask, token_type_ids, deterministic=deterministic
        )
        dropout = Dropout(config.head_dropout, deterministic=deterministic)
        if self.pooling == "mean":
            pooled = mean_pooling(hidden, attention_mask)
        elif self.pooling == "dense":
            head = dense(config, config.hidden_size, "head_dense")
            pooled = jnp.tanh(head(dropout(hidden[:, 0])))
        pooled = dropout(pooled).astype(jnp.float32)
        return dense(config, self.labels, "classifier", dtype=jnp.float32)(pooled)


def mean_pooling(
    hidden: Float[Array, "B N E"], attention_mask: Array | None
) -> Float[Array, "B E"]:
    """Mean of the tokens that are not padding, in float32; zeros for a row of padding alone."""
    hidden = hidden.astype(jnp.float32)
    if attention_mask is None:
        return hidden.mean(axis=1)
    return masked_mean(hidden, attention_mask.astype(bool)[..., None], axis=1)


class MultipleChoice(nn.Module):
    """One logit for each of C choices, each choice being a sequence of its own.

    Inside, the B x C sequences are one batch: that is what the alignment's samples are, so a
    `sample_mask` must be repeated C times (`jnp.repeat(mask, C)`).

    Attributes:
        config: the encoder's.
        pooling: see `SequenceClassifier`.

    Example:
        >>> import jax
        >>> config = BertConfig(vocab_size=9, hidden_size=8, layers=1, heads=2)
        >>> model, tokens = MultipleChoice(config), jnp.ones((1, 2, 3), jnp.int32)
        >>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
        >>> logits.shape
        (1, 2)
    """

    config: EncoderConfig
    pooling: str = "pooler"

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B C N"],
        attention_mask: Int[Array, "B C N"] | Bool[Array, "B C N"] | None = None,
        token_type_ids: Int[Array, "B C N"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B C"]:
        """Logits of the choices; arguments as the encoder's, with an axis for the choices.

        Raises:
            ValueError: tokens that are not [B, C, N].
        """
        if input_ids.ndim != 3:
            raise ValueError(f"input_ids must be [B, C, N], got shape {input_ids.shape}.")
        tokens = input_ids.reshape(-1, input_ids.shape[-1])
        others = [
            x if x is None else x.reshape(tokens.shape) for x in (attention_mask, token_type_ids)
        ]
        classifier = SequenceClassifier(self.config, 1, self.pooling)
        # So that its parameters are named as those of a plain classifier.
        nn.share_scope(self, classifier)
        logits = classifier(tokens, *others, deterministic=deterministic)
        return logits.reshape(input_ids.shape[:2])


class SpanLogits(NamedTuple):
    """Logits of a span's first and last token, padding included: mask before a softmax.

    Attributes:
        start: of each token to be the first one, [B, N].
        end: of each token to be the last one, [B, N].

    Example:
        >>> SpanLogits(start=jnp.zeros((1, 5)), end=jnp.zeros((1, 5))).end.shape
        (1, 5)
    """

    start: Float[Array, "B N"]
    end: Float[Array, "B N"]


class SpanExtractor(nn.Module):
    """Where an answer begins and ends in the sequence (SQuAD).

    Attributes:
        config: the encoder's.

    Example:
        >>> import jax
        >>> config = BertConfig(vocab_size=9, hidden_size=8, layers=1, heads=2)
        >>> model, tokens = SpanExtractor(config), jnp.ones((2, 3), jnp.int32)
        >>> spans, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
        >>> spans.start.shape
        (2, 3)
    """

    config: EncoderConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B N"],
        attention_mask: Int[Array, "B N"] | Bool[Array, "B N"] | None = None,
        token_type_ids: Int[Array, "B N"] | None = None,
        *,
        deterministic: bool = True,
    ) -> SpanLogits:
        """Start and end logits; arguments as the encoder's."""
        hidden, _ = text_encoder(self.config, pooler=False, name="encoder")(
            input_ids, attention_mask, token_type_ids, deterministic=deterministic
        )
        hidden = hidden.astype(jnp.float32)
        logits = dense(self.config, 2, "span", dtype=jnp.float32)(hidden)
        return SpanLogits(logits[..., 0], logits[..., 1])
