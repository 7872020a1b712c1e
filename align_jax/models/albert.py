"""ALBERT encoders: small embeddings, and one layer applied again and again.

Source: Lan et al., "ALBERT", 2020 (arXiv 1909.11942). Computes what the PyTorch model in
`transformers` computes, so that its weights can be loaded (`align_jax.pretrained`).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Array

from align_jax.models.stack import scanned
from align_jax.models.transformer import Embeddings, Encoder, EncoderConfig, dense, layer_class


@dataclasses.dataclass(frozen=True)
class AlbertConfig(EncoderConfig):
    """An ALBERT encoder; the defaults are ALBERT-base-v2's.

    Attributes:
        embedding_size: width of the embeddings, projected to `hidden_size` afterwards.
        groups: number of layer groups with parameters of their own; the `layers` applications are
            divided among them in order.
        group_layers: layers in a group; one application of a group runs through all of them.

    The other attributes are `EncoderConfig`'s. `scan_layers`, which takes one layer for all
    applications, leaves the parameters as they are.

    Raises:
        ValueError: a value is out of range; the message names it.

    Example:
        >>> AlbertConfig().embedding_size
        128
    """

    vocab_size: int = 30000
    activation: str = "gelu_new"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    classifier_dropout: float | None = 0.1
    embedding_size: int = 128
    groups: int = 1
    group_layers: int = 1

    counts: ClassVar[tuple[str, ...]] = (
        *EncoderConfig.counts, "embedding_size", "groups", "group_layers",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scan_layers and (self.groups, self.group_layers) != (1, 1):
            raise ValueError(
                f"AlbertConfig.scan_layers is True with groups = {self.groups} and group_layers = "
                f"{self.group_layers}; only one layer for all applications can be scanned (1 and "
                f"1). Set scan_layers=False."
            )
        if self.groups > self.layers:
            raise ValueError(
                f"AlbertConfig.groups is {self.groups}, more than the {self.layers} layers: some "
                "groups would never run."
            )

    def group_of(self, application: int) -> int:
        """Which group runs at this application, counted from 0."""
        return application * self.groups // self.layers


class AlbertEncoder(Encoder):
    """Tokens in, hidden states out; attributes and call are `Encoder`'s.

    The parameters of a layer exist once, as `layer_0` (or up to `groups * group_layers` of them),
    and its attention sows its alignment once per application.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = AlbertEncoder(AlbertConfig(vocab_size=9, hidden_size=8, layers=2, heads=2))
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.array([[1, 2, 3]]))
        >>> sorted(variables["params"])
        ['embedding_projection', 'embeddings', 'layer_0', 'pooler']
    """

    config: AlbertConfig

    def _embedded(
        self, input_ids: Array, token_type_ids: Array | None, deterministic: bool
    ) -> Array:
        config = self.config
        embed = Embeddings(config, config.embedding_size, name="embeddings")
        tokens = embed(input_ids, token_type_ids, deterministic=deterministic)
        return dense(config, config.hidden_size, "embedding_projection")(tokens)

    def _layers(self, tokens: Array, valid: Array, deterministic: bool) -> Array:
        config, layer = self.config, layer_class(self.config)
        shared = [
            layer(config, name=f"layer_{number}")
            for number in range(config.groups * config.group_layers)
        ]
        if config.scan_layers:
            return scanned(shared[0], config.layers, tokens, valid, deterministic, shared=True)
        for application in range(config.layers):
            first = config.group_of(application) * config.group_layers
            for one in shared[first : first + config.group_layers]:
                tokens = one(tokens, valid, deterministic)
        return tokens
