"""Watching metrics over the evaluations: when to stop, and which parameters were the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from train.registry import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A metric and the direction in which it improves.

    Example:
        >>> Criterion.parse("validation/loss:min").metric
        'validation/loss'
    """

    metric: str
    direction: str

    @classmethod
    def parse(cls, text: str) -> Criterion:
        """Reads "split/metric:min" or "split/metric:max".

        Raises:
            ConfigError: the text has another form.
        """
        metric, colon, direction = text.rpartition(":")
        if not colon or not metric or direction not in ("min", "max"):
            raise ConfigError(
                f"{text!r} is no criterion; expected 'split/metric:min' or 'split/metric:max', "
                f"for instance 'validation/loss:min'."
            )
        return cls(metric, direction)

    def value(self, metrics: Mapping[str, float]) -> float:
        """The metric's value.

        Raises:
            ConfigError: there is no such metric; names the nearest one.
        """
        if self.metric not in metrics:
            raise ConfigError(
                f"The metric {self.metric!r} is not measured; {nearest(self.metric, metrics)}"
                f"measured while training: {', '.join(sorted(metrics))}."
            )
        return float(metrics[self.metric])

    def rank(self, metrics: Mapping[str, float]) -> float:
        """How good, higher is better; the worst of all if it was not measured, or is nan."""
        value = metrics.get(self.metric, math.nan)
        if math.isnan(value):
            return -math.inf
        return -value if self.direction == "min" else value


@dataclasses.dataclass
class EarlyStopping:
    """Patience over several metrics, as in the released code of Graph Attention Networks.

    An evaluation at which any of the metrics reaches its best value so far resets the patience; the
    best parameters are those of the last evaluation at which all of them did.
    """

    criteria: Sequence[Criterion]
    patience: int = 0  # evaluations without improvement before stopping; 0 never stops
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # each metric's so far
    waited: int = 0  # evaluations since the last improvement

    def update(self, metrics: Mapping[str, float]) -> bool:
        """Takes in an evaluation; returns whether it is the best so far by every metric."""
        reached = []
        for one in self.criteria:
            value = one.value(metrics)
            reached.append(not math.isnan(value) and one.rank(metrics) >= one.rank(self.best))
            if reached[-1]:
                self.best[one.metric] = value
        self.waited = 0 if any(reached) else self.waited + 1
        return all(reached)

    @property
    def stop(self) -> bool:
        """Whether the patience is used up."""
        return 0 < self.patience <= self.waited

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"best": dict(self.best), "waited": self.waited}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes over what `to_json` returned."""
        self.best, self.waited = dict(saved["best"]), int(saved["waited"])
