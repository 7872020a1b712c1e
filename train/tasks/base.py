"""What a task knows: how to call the model on a batch, the loss, and the metrics.

The training step and the loop know none of these; a new kind of experiment is a new subclass here,
not another loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from train.registry import ConfigError

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """Base class; frozen and hashable, for it is a static part of the training state.

    Attributes:
        inputs: the batch's arrays that the model takes, in the order of its arguments.
    """

    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))  # a config may hand over a list

    @property
    def logit_bins(self) -> int | None:
        """Bins of the calibration that is measured over a whole split's logits.

        None unless `predictions` hold the "logits" and "label" of a classification.
        """
        return None

    def init(self, model: nn.Module, rng: Array, batch: Batch) -> dict[str, Any]:
        """Makes the model's parameters.

        Only "params" is kept: what a module sows while it is initialised is no parameter.
        """
        variables = model.init(
            {"params": rng}, *self._arguments(batch), deterministic=True, mutable=["params"]
        )
        return variables["params"]

    def apply(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        batch: Batch,
        *,
        train: bool,
        rngs: dict[str, Array] | None = None,
        mutable: Any = False,
    ) -> Any:
        """Calls the model on a batch.

        Returns:
            The outputs; with `mutable` also the mutated collections, as `model.apply` does.
        """
        return model.apply(
            variables, *self._arguments(batch), deterministic=not train, rngs=rngs, mutable=mutable
        )

    def loss(self, outputs: Any, batch: Batch) -> Float[Array, "B"]:
        """The loss of each example, float32; the step leaves out rows whose mask is False."""
        raise NotImplementedError

    def metrics(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Sums over the batch's examples (mask respected); see `train.tasks.metrics`."""
        raise NotImplementedError

    def predictions(self, outputs: Any, batch: Batch) -> dict[str, Array]:
        """Small arrays [B, ...] per example, for metrics that are no sum over examples."""
        return {}

    def corpus_metrics(
        self, predictions: Mapping[str, np.ndarray], references: Any = None
    ) -> dict[str, float]:
        """Metrics of a whole split out of all its predictions, on the host (F1, correlations).

        Args:
            predictions: what `predictions` returned, of all examples in order.
            references: the data source's of this split (see `DataSource.references`).
        """
        return {}

    def stochastic_metrics(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """As `metrics`, of how sure the model is of its predictions; nothing if that is not known.

        The outputs are those of S passes with dropout, [S, ...].
        """
        return {}

    def embeddings(
        self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
    ) -> Float[Array, "B E"] | None:
        """What the model makes of each example before its last layer, for pictures; None: none."""
        return None

    def sample_mask(self, batch: Batch) -> Bool[Array, "B"] | None:
        """Which samples count in the alignment loss; None counts all of them."""
        return batch["mask"]

    def _arguments(self, batch: Batch) -> list[jax.Array]:
        missing = [name for name in self.inputs if name not in batch]
        if missing:
            raise ConfigError(
                f"task.inputs names {missing}, which the data do not have; the batch holds "
                f"{sorted(batch)}."
            )
        return [batch[name] for name in self.inputs]
