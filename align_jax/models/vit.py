"""A Vision Transformer small enough to read, with alignment in every attention layer.

Source: "An Image is Worth 16x16 Words" (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929): patches
become tokens, learned positions are added, pre-norm transformer layers follow. The attention is
:class:`align_jax.MultiHeadDotProductAttention`, so the only trace of alignment in this file is one
argument.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from align_jax.attention import MultiHeadDotProductAttention
from align_jax.config import AlignmentConfig
from align_jax.models import settings
from align_jax.numerics import check_choice

POOLS = ("mean", "cls")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes and options of :class:`VisionTransformer`.

    Attributes:
        image_size: height and width of the images, in pixels.
        channels: values per pixel.
        num_classes: number of logits.
        patch_size: side of a square patch, in pixels; divides `image_size`.
        hidden_size: width of a token (E); a multiple of `heads`.
        layers: number of transformer layers (L).
        heads: attention heads per layer (H).
        mlp_size: width of the hidden layer of the MLP in each transformer layer.
        dropout: probability of dropping an activation after the embedding, attention and MLP.
        attention_dropout: probability of dropping an attention weight.
        normalize_qk: whether each head's queries and keys pass through a LayerNorm.
        pool: "mean" averages the tokens; "cls" prepends a learned token and reads it.
        dtype: dtype of the computation; parameters and logits stay float32.
        alignment: what to align in each attention layer; None aligns nothing.

    Raises:
        ValueError: a size is not positive or does not divide, a probability is outside [0, 1), or
            `pool` or `dtype` is unknown.

    Example:
        >>> ViTConfig(image_size=8, patch_size=2).tokens
        16
    """

    image_size: int = 8
    channels: int = 1
    num_classes: int = 10
    patch_size: int = 2
    hidden_size: int = 64
    layers: int = 3
    heads: int = 4
    mlp_size: int = 128
    dropout: float = 0.0
    attention_dropout: float = 0.0
    normalize_qk: bool = False
    pool: str = "mean"
    dtype: str = "float32"
    alignment: AlignmentConfig | None = None

    def __post_init__(self) -> None:
        settings.name_alignment(self)
        counts = ("image_size", "channels", "num_classes", "patch_size", "hidden_size", "layers",
                  "heads", "mlp_size")  # fmt: skip
        settings.check_counts(self, dict.fromkeys(counts, 1))
        settings.check_probabilities(self, ("dropout", "attention_dropout"))
        if self.image_size % self.patch_size:
            raise ValueError(
                f"ViTConfig.patch_size is {self.patch_size}, which does not divide image_size "
                f"{self.image_size}; choose a divisor, so that every pixel belongs to a patch."
            )
        settings.check_transformer(self)
        check_choice("ViTConfig.pool", self.pool, POOLS)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def tokens(self) -> int:
        """Number of tokens that attention sees (N): the patches, and the class token if any."""
        return self.grid[0] * self.grid[1] + (self.pool == "cls")


class TransformerLayer(nn.Module):
    """One pre-norm layer: attention, then an MLP, each added to its input."""

    config: ViTConfig

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N E"], deterministic: bool) -> Float[Array, "B N E"]:
        """Applies the layer; `deterministic=False` switches dropout on."""
        config = self.config
        dropout = nn.Dropout(config.dropout, deterministic=deterministic)

        attended = MultiHeadDotProductAttention(
            num_heads=config.heads,
            dropout_rate=config.attention_dropout,
            normalize_qk=config.normalize_qk,
            dtype=jnp.dtype(config.dtype),
            alignment=config.alignment,
            name="attention",
        )(self._norm(tokens, "attention_norm"), deterministic=deterministic)
        tokens = tokens + dropout(attended)

        hidden = self._dense(config.mlp_size, "mlp_in")(self._norm(tokens, "mlp_norm"))
        return tokens + dropout(self._dense(config.hidden_size, "mlp_out")(nn.gelu(hidden)))

    def _norm(self, tokens: Array, name: str) -> Array:
        return nn.LayerNorm(dtype=jnp.dtype(self.config.dtype), name=name)(tokens)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=jnp.dtype(self.config.dtype), name=name)


class VisionTransformer(nn.Module):
    """Images in, class logits out.

    Attributes:
        config: sizes and options.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = VisionTransformer(ViTConfig(num_classes=10))
        >>> images = jnp.zeros((2, 8, 8, 1))
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        >>> logits.shape
        (2, 10)
    """

    config: ViTConfig

    @nn.compact
    def __call__(
        self, images: Float[Array, "B height width channels"], *, deterministic: bool = True
    ) -> Float[Array, "B classes"]:
        """Classifies a batch of images.

        Args:
            images: [B, height, width, channels], of the size in the configuration.
            deterministic: False in training: dropout is on and needs the "dropout" RNG.

        Returns:
            Logits [B, classes], float32.

        Raises:
            ValueError: the images' size differs from the configuration's.
        """
        config = self.config
        expected = (config.image_size, config.image_size, config.channels)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"VisionTransformer got images of shape {images.shape}; expected [B, "
                f"{config.image_size}, {config.image_size}, {config.channels}], from "
                f"ViTConfig.image_size and ViTConfig.channels."
            )

        tokens = self._embed(images)
        tokens = nn.Dropout(config.dropout, deterministic=deterministic)(tokens)
        for layer in range(config.layers):
            tokens = TransformerLayer(config, name=f"layer_{layer}")(tokens, deterministic)
        tokens = nn.LayerNorm(dtype=jnp.dtype(config.dtype), name="final_norm")(tokens)

        pooled = tokens[:, 0] if config.pool == "cls" else tokens.mean(axis=1)
        # In float32 whatever the compute dtype: softmax and calibration read these logits.
        return nn.Dense(config.num_classes, name="classifier")(pooled.astype(jnp.float32))

    def _embed(self, images: Array) -> Array:
        """Patches -> tokens [B, N, E], with positions, and the class token in front if any."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        size = (config.patch_size, config.patch_size)
        patches = nn.Conv(
            config.hidden_size, size, strides=size, padding="VALID", dtype=dtype,
            name="patch_embedding",
        )(images)  # fmt: skip
        tokens = patches.reshape(images.shape[0], -1, config.hidden_size)

        if config.pool == "cls":
            start = self.param(
                "cls_token", nn.initializers.zeros, (1, 1, config.hidden_size), jnp.float32
            )
            start = jnp.broadcast_to(start, (images.shape[0], 1, config.hidden_size))
            tokens = jnp.concatenate([start.astype(dtype), tokens], axis=1)

        positions = self.param(
            "position_embedding",
            nn.initializers.normal(stddev=0.02),
            (1, config.tokens, config.hidden_size),
            jnp.float32,
        )
        return tokens + positions.astype(dtype)
