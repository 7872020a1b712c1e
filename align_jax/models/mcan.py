"""MCAN: a question and an image's regions in, answers out, with alignment in every attention.

Source: "Deep Modular Co-Attention Networks for Visual Question Answering" (Yu et al., CVPR 2019,
arXiv 1906.10770). The question's words run through an LSTM and layers of self-attention; the
regions then through layers of self-attention and of attention guided by the words, so that there
are M regions as queries and N words as keys. Both are reduced to one vector each, added, and
classified.
"""

from __future__ import annotations

import dataclasses
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
from align_jax.numerics import check_indices


@dataclasses.dataclass(frozen=True)
class MCANConfig:
    """Sizes and options of :class:`MCAN`; by default the small one of the paper's Tables 5 and 9.

    Attributes:
        vocabulary_size: number of word ids; 0 is padding. VQA-v2's questions, those of Visual
            Genome included, have 20,573.
        num_answers: number of logits; VQA-v2 has 3,129 answers.
        region_features: width of a region's features (F).
        region_positions: number of learned positions that are added to the regions, for regions
            whose order means something (the patches of an image); 0 for none, as published.
        word_features: width of a word's embedding; GloVe's is 300.
        hidden_size: width of a token (E); a multiple of `heads`.
        layers: of the encoder, and of the decoder (L).
        heads: attention heads (H).
        mlp_size: width of the hidden layer of each MLP.
        reduction_size: width of the hidden layer of the attentional reduction.
        fused_size: width of the vector that question and image are added in.
        dropout: probability of dropping an activation.
        attention_dropout: probability of dropping an attention weight.
        dtype: dtype of the computation; parameters and logits stay float32.
        alignment: what to align in each attention; None aligns nothing.

    Raises:
        ValueError: a value is out of range; the message names it.

    Example:
        >>> MCANConfig(num_answers=13).hidden_size
        512
    """

    vocabulary_size: int = 20_573
    num_answers: int = 3129
    region_features: int = 2048
    region_positions: int = 0
    word_features: int = 300
    hidden_size: int = 512
    layers: int = 4
    heads: int = 8
    mlp_size: int = 2048
    reduction_size: int = 512
    fused_size: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.1
    dtype: str = "float32"
    alignment: AlignmentConfig | None = None

    counts: ClassVar[tuple[str, ...]] = (
        "vocabulary_size", "num_answers", "region_features", "word_features", "hidden_size",
        "layers", "heads", "mlp_size", "reduction_size", "fused_size",
    )  # fmt: skip

    def __post_init__(self) -> None:
        settings.name_alignment(self)
        settings.check_counts(self, {**dict.fromkeys(self.counts, 1), "region_positions": 0})
        settings.check_probabilities(self, ("dropout", "attention_dropout"))
        settings.check_transformer(self)

    @classmethod
    def large(cls, **changes: Any) -> MCANConfig:
        """MCAN's larger size: hidden 1024, 6 layers."""
        sizes = {"hidden_size": 1024, "layers": 6, "mlp_size": 4096, "fused_size": 2048}
        return cls(**sizes | changes)


class MCAN(nn.Module):
    """Logits of the answers to questions about images.

    Attributes:
        config: sizes and options.

    Example:
        >>> config = MCANConfig(9, 3, 5, hidden_size=8, layers=1, heads=2, mlp_size=8)
        >>> question, regions = jnp.array([[1, 2, 0]]), jnp.ones((1, 4, 5))
        >>> model = MCAN(config)
        >>> call = jax.random.key(0), question, regions
        >>> logits, variables = jax.eval_shape(model.init_with_output, *call)
        >>> logits.shape
        (1, 3)
    """

    config: MCANConfig

    @nn.compact
    def __call__(
        self,
        question: Int[Array, "B N"],
        image: Float[Array, "B M F"],
        question_mask: Bool[Array, "B N"] | None = None,
        image_mask: Bool[Array, "B M"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B answers"]:
        """Answers questions.

        Args:
            question: word ids, padded behind the words.
            image: features of the regions.
            question_mask: True for words, False for padding; None: the words that are not 0.
            image_mask: True for regions, False for padding; None: all of them.
            deterministic: False in training: dropout is on and needs the "dropout" RNG.

        Returns:
            Logits [B, answers], float32; each answer's is that of a sigmoid of its own.

        Raises:
            ValueError: shapes do not fit together or to the configuration, or a word has no
                embedding. Under `jax.jit` that cannot be refused, and makes the logits NaN.
            TypeError: word ids that are no integers.
        """
        config = self.config
        _check_inputs(config, question, image, question_mask, image_mask)
        words_valid = question != 0 if question_mask is None else question_mask
        regions_valid = jnp.ones(image.shape[:2], bool) if image_mask is None else image_mask

        table = Embed(config.vocabulary_size, config.word_features, name="words")
        words: Any = placement.look_up(table, question, config.word_features)
        # Words precede their padding, so what the LSTM makes of padding reaches none of them.
        words = nn.RNN(
            nn.OptimizedLSTMCell(config.hidden_size, dtype=jnp.dtype(config.dtype)), name="lstm"
        )(words)
        for layer in range(config.layers):
            words = Layer(config, name=f"encoder_{layer}")(words, words_valid, deterministic)

        regions = _dense(config, config.hidden_size, "regions")(image)
        if config.region_positions:
            shape = config.region_positions, config.hidden_size
            places = self.param(
                "region_positions", nn.initializers.normal(0.02), shape, jnp.float32
            )
            regions += places.astype(regions.dtype)[: image.shape[1]]
        for layer in range(config.layers):
            regions = Layer(config, name=f"decoder_{layer}")(
                regions, regions_valid, deterministic, guides=(words, words_valid)
            )

        fused = Reduction(config, name="question_reduction")(words, words_valid, deterministic)
        fused += Reduction(config, name="image_reduction")(regions, regions_valid, deterministic)
        fused = _norm(config, "fused_norm")(fused).astype(jnp.float32)
        return nn.Dense(config.num_answers, name="classifier")(fused)


class Layer(nn.Module):
    """A post-norm layer: self-attention, attention guided by other tokens if given, an MLP.

    Attributes:
        config: sizes and options.
    """

    config: MCANConfig

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B N E"],
        valid: Bool[Array, "B N"],
        deterministic: bool,
        guides: tuple[Float[Array, "B M E"], Bool[Array, "B M"]] | None = None,
    ) -> Float[Array, "B N E"]:
        """Applies the layer; what becomes of padding, where `valid` is False, means nothing.

        `guides` are tokens to attend to as well, and which of them are valid (MCAN's SGA); None is
        self-attention alone (its SA).
        """
        config = self.config
        dropout = Dropout(config.dropout, deterministic=deterministic)

        def attend(name: str, tokens: Array, others: Array | None, others_valid: Array) -> Array:
            masks = {"query_mask": valid, "key_mask": others_valid}
            attention = multi_head_attention(config, deterministic, name=name)
            attended = attention(tokens, others, mask=others_valid[:, None, None, :], **masks)
            return _norm(config, f"{name}_norm")(tokens + dropout(attended))

        tokens = attend("attention", tokens, None, valid)
        if guides is not None:
            tokens = attend("guided_attention", tokens, *guides)
        hidden = dropout(nn.relu(_dense(config, config.mlp_size, "mlp_in")(tokens)))
        hidden = _dense(config, config.hidden_size, "mlp_out")(hidden)
        return _norm(config, "mlp_norm")(tokens + dropout(hidden))


class Reduction(nn.Module):
    """One vector for all tokens: their mean by learned weights, projected (the paper's Eq. 11)."""

    config: MCANConfig

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B N E"], valid: Bool[Array, "B N"], deterministic: bool
    ) -> Float[Array, "B fused"]:
        """Reduces; without a valid token, all count the same."""
        config = self.config
        hidden = nn.relu(_dense(config, config.reduction_size, "mlp_in")(tokens))
        hidden = Dropout(config.dropout, deterministic=deterministic)(hidden)
        scores = _dense(config, 1, "mlp_out")(hidden)[..., 0].astype(jnp.float32)
        weights = jax.nn.softmax(jnp.where(valid, scores, np.finfo(np.float32).min), axis=-1)
        mean = jnp.einsum("bn,bne->be", weights.astype(tokens.dtype), tokens)
        return _dense(config, config.fused_size, "projection")(mean)


def _dense(config: MCANConfig, features: int, name: str) -> nn.Dense:
    return nn.Dense(
        features, dtype=jnp.dtype(config.dtype), dot_general=flat_dot_general, name=name
    )


def _norm(config: MCANConfig, name: str) -> LayerNorm:
    return LayerNorm(dtype=jnp.dtype(config.dtype), name=name)


def _check_inputs(
    config: MCANConfig,
    question: Array,
    image: Array,
    question_mask: Array | None,
    image_mask: Array | None,
) -> None:
    if question.ndim != 2 or question.shape[1] == 0:
        raise ValueError(f"question must be [B, N], N above 0, got shape {question.shape}.")
    if image.ndim != 3 or image.shape[0] != question.shape[0] or image.shape[1] == 0:
        raise ValueError(
            f"image must be [B, M, F] with B = {question.shape[0]} as question has and M above 0, "
            f"got shape {image.shape}."
        )
    if image.shape[2] != config.region_features:
        raise ValueError(
            f"image has {image.shape[2]} features per region; MCANConfig.region_features is "
            f"{config.region_features}."
        )
    if config.region_positions and image.shape[1] > config.region_positions:
        raise ValueError(
            f"image has {image.shape[1]} regions; MCANConfig.region_positions is "
            f"{config.region_positions}."
        )
    check_indices("question", question, config.vocabulary_size, "words")
    masks = ("question_mask", question_mask, question), ("image_mask", image_mask, image)
    for name, mask, tokens in masks:
        if mask is not None and mask.shape != tokens.shape[:2]:
            raise ValueError(f"{name} must be {tokens.shape[:2]}, got shape {mask.shape}.")
