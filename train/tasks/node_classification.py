"""Node classification: one graph, a class for each node, the split's mask says which count."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.tasks.base import Batch
from train.tasks.classification import Classification


@dataclasses.dataclass(frozen=True)
class NodeClassification(Classification):
    """Classification whose examples are the nodes of one graph, N in place of B.

    The batch holds the whole graph and "mask", bool [N]: the nodes of the split, which alone enter
    the loss and the metrics. The labels of the others may be unknown (-1).
    """

    inputs: tuple[str, ...] = ("features", "senders", "receivers")

    def loss(self, outputs: Float[Array, "N C"], batch: Batch) -> Float[Array, "N"]:
        """Cross-entropy of each node, in nats; of no meaning where the label is unknown."""
        return super().loss(outputs, _known_labels(batch))

    def metrics(self, outputs: Float[Array, "N C"], batch: Batch) -> dict[str, Any]:
        """Accuracy in [0, 1] and the reliability bins, over the nodes of the split."""
        return super().metrics(outputs, _known_labels(batch))

    def stochastic_metrics(self, outputs: Float[Array, "S N C"], batch: Batch) -> dict[str, Any]:
        """PAvPU and the share of certain predictions, over the nodes of the split."""
        return super().stochastic_metrics(outputs, _known_labels(batch))

    def embeddings(
        self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
    ) -> Float[Array, "N E"]:
        """The input of the model's last layer."""
        _, collections = self.apply(model, variables, batch, train=False, mutable=["intermediates"])
        return collections["intermediates"]["embeddings"][0]

    def sample_mask(self, batch: Batch) -> None:
        """None: to the alignment, the graph is one sample, whose tokens are all of its nodes."""
        del batch


def _known_labels(batch: Batch) -> dict[str, Any]:
    """The batch with 0 for unknown labels, so that no index is out of range; the mask stays."""
    return {**batch, "label": jnp.maximum(batch["label"], 0)}
