"""The state of training: everything a checkpoint must hold, and the fixed parts it belongs to."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from align_jax import AdapterConfig, AlignmentConfig, init_adapters, merge_adapters
from train.registry import ConfigError
from train.step.freezing import ADAPTERS, split
from train.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class AlignmentTerm:
    """The alignment's part of the loss: `weight * mean divergence`.

    Attributes:
        config: what is aligned, and how.
        weight: lambda of the paper, where 0.01 is used throughout; None takes the method's
            `AlignmentConfig.default_weight`.
        warmup_steps: steps over which the weight rises linearly from 0.

    Raises:
        ConfigError: weight or warmup_steps is negative.
    """

    config: AlignmentConfig
    weight: float | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.weight is None:
            object.__setattr__(self, "weight", self.config.default_weight)
        for name in ("weight", "warmup_steps"):
            if not 0 <= getattr(self, name) < float("inf"):  # nor NaN
                raise ConfigError(
                    f"alignment.{name} is {getattr(self, name)}; expected 0 or more, and finite."
                )

    @property
    def active(self) -> bool:
        """Whether there is a divergence to compute at all."""
        return self.config.method != "none"

    def weight_at(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The weight at a step."""
        if not self.warmup_steps:
            return jnp.float32(self.weight)
        return jnp.float32(self.weight) * jnp.minimum((step + 1) / self.warmup_steps, 1.0)


class TrainState(flax.struct.PyTreeNode):
    """What a training step maps to what the next one starts from.

    Attributes:
        step: number of steps taken, int32 scalar.
        params: the model's parameters, alignment networks included.
        opt_state: the optimiser's state.
        rng: the run's key; a step folds `step` and the device's index into it and leaves it as is.
        model, tx, task, alignment: fixed parts, compiled into the step.
        freeze: likewise; what keeps its value, see `OptimizerConfig.freeze`.
        adapters: likewise, of the low-rank adapters in `params`; None if there are none.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState
    rng: Array
    model: nn.Module = flax.struct.field(pytree_node=False)
    tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    task: Task = flax.struct.field(pytree_node=False)
    alignment: AlignmentTerm = flax.struct.field(pytree_node=False)
    freeze: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    adapters: AdapterConfig | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied to: its parameters, with the adapters merged into them."""
        if self.adapters is None:
            return {"params": self.params}
        params = {name: child for name, child in self.params.items() if name != ADAPTERS}
        return {"params": merge_adapters(params, self.params[ADAPTERS], self.adapters)}

    def start_from(self, params: Any) -> TrainState:
        """The same with other parameters, of which the optimiser knows nothing yet."""
        trained, _ = split(params, self.freeze)
        return self.replace(params=params, opt_state=self.tx.init(trained))


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    task: Task,
    alignment: AlignmentTerm,
    batch: Batch,
    seed: int,
    freeze: tuple[str, ...] = (),
    adapters: AdapterConfig | None = None,
) -> TrainState:
    """Initialises the parameters and the optimiser.

    The parameters that a plain and an aligned model share start out equal for equal seeds, because
    Linen derives each parameter's key from its path.

    Of the batch, an example, only the shapes matter; the seed is of the parameters and of dropout.
    Adapters lie in the parameters as "adapters". The other arguments as of `TrainState`.

    Raises:
        ConfigError: an expression of `freeze` fits nothing, or all of them fit everything; or the
            adapters do not fit the model.
    """
    init_rng, train_rng = jax.random.split(jax.random.key(seed))
    params, opt_state = _initialised(model, tx, task, freeze, adapters, init_rng, dict(batch))
    start = jnp.zeros((), jnp.int32), params, opt_state, train_rng
    return TrainState(*start, model, tx, task, alignment, freeze, adapters)


# Once for all seeds.
@functools.partial(jax.jit, static_argnames=("model", "tx", "task", "freeze", "adapters"))
def _initialised(
    model: nn.Module, tx: optax.GradientTransformation, task: Task, freeze: tuple[str, ...],
    adapters: AdapterConfig | None, rng: Array, batch: Batch,
) -> tuple[Any, optax.OptState]:  # fmt: skip
    params = task.init(model, rng, batch)
    if adapters is not None:
        try:
            params |= {ADAPTERS: init_adapters(jax.random.fold_in(rng, 0), params, adapters)}
        except ValueError as error:
            raise ConfigError(f"The adapters of config.model: {error}") from error
    return params, tx.init(split(params, freeze)[0])
