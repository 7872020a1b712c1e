"""Metrics as sums and counts, so that they add up over batches, devices and hosts.

A batch yields a dict of metrics; every metric is a pytree whose leaves add up (`merge`,
`jax.lax.psum`), and only `compute` turns the totals into numbers. A mean of means would weigh the
last, smaller batch wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from align_jax.calibration import CalibrationBins


class Mean(flax.struct.PyTreeNode):
    """A mean in the making.

    Attributes:
        total: sum of the values, scalar or an array (for instance one entry per head, [H]).
        count: how many values the sum holds, scalar.
    """

    total: Any
    count: Any

    @classmethod
    def of(cls, values: Array, where: Bool[Array, "B"] | None = None) -> Mean:
        """Sums `values` [B, ...] over the examples where `where` [B] is True.

        Example:
            >>> Mean.of(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])).compute()
            2.0
        """
        if where is None:
            where = jnp.ones(values.shape[:1], bool)
        chosen = where.reshape(where.shape + (1,) * (values.ndim - 1))
        total = jnp.where(chosen, values.astype(jnp.float32), 0.0).sum(axis=0)
        return cls(total=total, count=where.sum().astype(jnp.float32))

    def compute(self) -> Any:
        """The mean: a float, or an array for an array of totals; nan when nothing was counted."""
        total, count = np.asarray(self.total), float(self.count)
        mean = total / count if count else np.full_like(total, np.nan)
        return float(mean) if mean.ndim == 0 else mean


class Calibration(flax.struct.PyTreeNode):
    """The reliability bins of a classifier; computes to the expected calibration error."""

    bins: CalibrationBins

    def compute(self) -> float:
        """The expected calibration error, in [0, 1]."""
        return float(self.bins.expected_calibration_error())


def merge(batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds the metrics of batches, leaf by leaf, on the host in float64; {} for no batches."""
    total: dict[str, Any] | None = None
    for batch in batches:
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), dict(batch))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    return total or {}


def compute(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Turns sums into numbers: {"accuracy": 0.98, "divergence": {"layer_0/attention": [H]}}."""
    return {
        name: compute(metric) if isinstance(metric, Mapping) else metric.compute()
        for name, metric in metrics.items()
    }
